"""femur_tf: finds the proximal femur in MR volumes with a per-voxel triplanar network.

The line of flow, one step a module:

    volume -> working grid -> centres -> patches -> records -> batches -> model
           -> probability map -> mask -> report
"""

__version__ = "0.1.0"

"""Volumes as SimpleITK images, whose millimetres run to the patient's left, posterior and superior (LPS)."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from femur_tf.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_lps(volume: Volume) -> sitk.Image:
    """Return a volume as a SimpleITK image, whose millimetres are LPS: x to the Left, y to Posterior."""
    affine = LPS_TO_RAS @ volume.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((affine[:3, :3] / volume.spacing_mm).ravel().tolist())
    return image


def lps_affine(image: sitk.Image) -> np.ndarray:
    """Return the affine, (4, 4) index -> RAS mm, of the first three axes of a SimpleITK image."""
    size = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (size, size))[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ affine

"""TensorFlow's start, without its log lines and with the faster of its two sets of CPU kernels.

TensorFlow writes a dozen lines to standard error while it is imported and while it
looks for devices, before any of its own settings of the log level can act. A user
would look for an error among them.

On processors without AVX-512, TensorFlow leaves oneDNN's kernels out unless it is told
otherwise. They train a patch network 1.4 times as fast there (docs/performance.md).
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path


def start_tensorflow() -> None:
    """Import TensorFlow and look for devices with standard error closed; errors are raised as ever.

    Commands call this before they import a module that needs TensorFlow. Once it is imported nothing happens.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for what it logs later
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # read while it is imported
    if sys.stderr is None:  # closed by whoever started this process
        importlib.import_module("tensorflow")
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            os.dup2(kept, 2)
            os.close(kept)

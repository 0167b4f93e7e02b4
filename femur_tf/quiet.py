"""TensorFlow's start without its log lines.

TensorFlow writes a dozen lines to standard error while it is imported and while it
looks for devices, before any of its own settings of the log level can act. A user
would look for an error among them.
"""

from __future__ import annotations

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

"""A trial in TensorBoard's HParams: its values, and its score.

tensorboard --logdir work/tuning/NAME
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api


def write_values(logs: Path, values: dict[str, Any], trial_id: str) -> None:
    """Write the hyper-parameters of a trial into its log folder."""
    with _writer(logs), tf.summary.record_if(True):
        api.hparams({name: value for name, value in values.items() if "/" not in name}, trial_id=trial_id)


def write_score(logs: Path, objective: str, score: float) -> None:
    """Write the score of a trial into its log folder."""
    with _writer(logs), tf.summary.record_if(True):
        tf.summary.scalar(f"objective/{objective}", score, step=1)


def _writer(logs: Path) -> Any:
    """Return a writer that is closed at the block's end."""
    writer = tf.summary.create_file_writer(str(logs))
    return writer.as_default()

"""The benchmark of dense evaluation: flags that do not go together, and a process that ends too early."""

from pathlib import Path

import pytest

from benchmarks import dense
from femur_tf.errors import DataError


def test_a_study_without_a_model_is_refused():
    with pytest.raises(DataError, match="--work: expected --model with it"):
        dense.main(dense.DenseArguments(work=Path("work")))


@pytest.mark.timeout(60)
def test_a_process_that_ends_before_it_is_done_is_told_of(monkeypatch):
    monkeypatch.setattr(dense, "_peak", divmod)  # which takes two arguments: the process ends with an error
    with pytest.raises(DataError, match=r"8 x 8 x 8 voxels within 10 MB\. Received: one that ended with status 1"):
        dense.peak_mb((8, 8, 8), 10)

"""Fixtures and settings that all tests share."""

import concurrent.futures
import os
from pathlib import Path

# Before anything imports TensorFlow or matplotlib.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import numpy as np
import pytest

# No deadline: the first example of a property may import or compile. No database: nothing is written beside the tests.
hypothesis.settings.register_profile("femur_tf", max_examples=25, deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("femur_tf")


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded source of chance, new for each test. A test that trains seeds Keras itself."""
    return np.random.default_rng(2017)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write records in threads of this process: starting one would import TensorFlow anew."""
    monkeypatch.setattr(
        concurrent.futures,
        "ProcessPoolExecutor",
        lambda workers, context, initializer: concurrent.futures.ThreadPoolExecutor(workers),
    )


@pytest.fixture(scope="session")
def hip_mri() -> Path:
    """The folder of real scans, which are not shipped: images/ and masks/."""
    folder = os.environ.get("FEMUR_TF_DATA")
    if not folder:
        pytest.skip("needs real scans: set FEMUR_TF_DATA to a folder with images/ and masks/")
    if not (Path(folder) / "images").is_dir():
        pytest.fail(f"FEMUR_TF_DATA: expected a folder with images/ and masks/. Received: {folder}")
    return Path(folder).resolve()

"""Packaging. docs/dependencies.md says why each dependency is needed; constraints.txt, which versions were tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "femur_tf" / "__init__.py").read_text(), re.MULTILINE)

CORE = [
    "tensorflow~=2.21",
    "keras~=3.15",
    "tensorboard~=2.21",
    "keras-tuner~=1.4,>=1.4.8",
    "numpy~=2.4",
    "scipy~=1.17",
    "nibabel~=5.4",
    "scikit-image~=0.26",
    "scikit-learn~=1.9",
    "matplotlib~=3.11",
    "SimpleITK~=2.5",
    "pydicom~=3.0",
    "tyro~=1.0",
    "rich~=15.0",
    "psutil~=7.2",
    "cattrs>=26.2,<28",
]

EXTRAS = {
    "serving": ["grpcio~=1.85", "protobuf>=7,<8"],
    "gpu": ["tensorflow[and-cuda]~=2.21"],
    "openvino": ["openvino~=2026.4"],
    "test": [
        "pytest~=9.2",
        "pytest-cov~=7.1",
        "pytest-timeout~=2.4",
        "pytest-xdist~=3.8",
        "coverage~=7.17",
        "hypothesis~=6.170",
        "mypy~=2.4",
        "ruff~=0.17.6",
        "types-psutil~=7.2",
        "tensorflow-serving-api~=2.21",
    ],
}

setup(
    name="femur_tf",
    version=VERSION.group(1) if VERSION else "0",
    description="Finds the proximal femur in MR volumes with a per-voxel triplanar network",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    packages=[
        *find_packages(include=["femur_tf", "femur_tf.*", "data_prep", "data_prep.*", "tuning", "tuning.*"]),
        "femur_tf.saved_models",
    ],
    # The shipped model lies beside the packages in the source tree and inside femur_tf in an installation.
    package_dir={"femur_tf.saved_models": "saved_models"},
    package_data={"femur_tf.saved_models": ["femur_t1_coronal/**/*"]},
    python_requires=">=3.11,<3.14",  # TensorFlow 2.21 is not made for 3.14
    install_requires=CORE,
    extras_require=EXTRAS,
)

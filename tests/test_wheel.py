"""The wheel: installed elsewhere, without the source tree, it segments a scan with the model that it brings."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import nibabel
import numpy as np
import pytest

from femur_tf import bundle, phantom

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _no_other_packages():
    """Let no PYTHONPATH lead the installed Python to the source tree."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("PYTHONPATH", raising=False)
        yield


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel and install it in an environment of its own; return that environment's Python.

    The dependencies are those of this environment, by a path alone: its own links, such as an editable installation
    of this project, are not followed.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("femur_tf-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env/bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def run(python, *arguments, cwd):
    """Run a module of the installed package far from the source tree."""
    return subprocess.run(
        [python, "-m", *map(str, arguments)], cwd=cwd, capture_output=True, encoding="utf-8", check=False
    )


def test_the_wheel_brings_its_own_package_and_model(installed, tmp_path):
    code = "from femur_tf import bundle; print(bundle.shipped())"
    found = subprocess.run([installed, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    place = Path(found.stdout.strip().splitlines()[-1])
    assert place.is_relative_to(installed.parents[1])
    assert place.name == bundle.SHIPPED


def test_an_installed_wheel_segments_a_phantom_without_naming_a_model(installed, tmp_path):
    made = phantom.make(np.random.default_rng(5))
    nibabel.save(nibabel.Nifti1Image(made.image.data.astype(np.int16), made.image.affine), tmp_path / "scan.nii.gz")
    done = run(installed, "femur_tf.segment", "scan.nii.gz", "mask.nii.gz", "--fast", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert mask.shape == made.mask.shape
    assert np.isin(np.unique(np.asarray(mask.dataobj)), (0, 1)).all()

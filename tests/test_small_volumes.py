"""The phantom cohort of small volumes: what it holds, and that it is written whole."""

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from benchmarks import small_volumes
from femur_tf.errors import DataError


def test_a_tube_runs_through_most_of_the_volume_in_one_piece():
    grey, mask = small_volumes.volume(np.random.default_rng(0))
    assert grey.shape == mask.shape == small_volumes.SHAPE
    assert (grey.dtype, mask.dtype) == (np.float32, bool)
    assert ndimage.label(mask)[1] == 1
    assert 0.01 < mask.mean() < 0.06
    assert mask.any(axis=(0, 2)).sum() > 28  # mm along the volume


def test_a_wider_volume_has_the_tube_in_its_middle():
    grey, mask = small_volumes.volume(np.random.default_rng(0), (45, 55, 51))
    assert grey.shape == mask.shape == (45, 55, 51)
    np.testing.assert_allclose(ndimage.center_of_mass(mask), [22, 27, 25], atol=6)
    assert ndimage.label(mask)[1] == 1


def test_other_things_are_as_grey_as_the_tube():
    grey, mask = small_volumes.volume(np.random.default_rng(1))
    low, high = np.percentile(grey[mask], [10, 90])
    assert ((grey >= low) & (grey <= high) & ~mask).sum() > 2 * mask.sum()


def test_a_cohort_is_written_and_not_overwritten(tmp_path):
    small_volumes.main(small_volumes.SmallArguments(tmp_path, cases=2))
    image, mask = (nibabel.load(tmp_path / name / "small_01.nii.gz") for name in ("images", "masks"))
    assert image.shape == mask.shape
    assert np.unique(np.asarray(mask.dataobj)).tolist() == [0, 1]
    with pytest.raises(DataError, match="already exists"):
        small_volumes.main(small_volumes.SmallArguments(tmp_path, cases=2))


def test_a_cohort_is_replaced_whole(tmp_path):
    small_volumes.main(small_volumes.SmallArguments(tmp_path, cases=2))
    small_volumes.main(small_volumes.SmallArguments(tmp_path, cases=1, first=5, overwrite=True))
    for name in ("images", "masks"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["small_05.nii.gz"]


def test_masks_that_are_there_stay(tmp_path):
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="masks: already exists"):
        small_volumes.main(small_volumes.SmallArguments(tmp_path, cases=1))
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("numbers", [{"cases": -1}, {"cases": 0}, {"first": -1}])
def test_numbers_that_cannot_be_are_refused(tmp_path, numbers):
    with pytest.raises(DataError, match="--cases, --first: expected at least 1 volume, numbered from 0 or more"):
        small_volumes.main(small_volumes.SmallArguments(tmp_path, **numbers))


def test_volumes_of_other_numbers_are_others(tmp_path):
    small_volumes.main(small_volumes.SmallArguments(tmp_path, cases=1, first=12))
    (image,) = (tmp_path / "images").iterdir()
    assert image.name == "small_12.nii.gz"
    grey, _ = small_volumes.volume(np.random.default_rng(12))
    np.testing.assert_array_equal(nibabel.load(image).get_fdata(dtype=np.float32), grey)

"""Enhanced DICOM files: many slices in one file, each with its geometry in a group of its own."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from femur_tf import image_names, segment
from femur_tf.errors import DataError
from femur_tf.image_io import read_image

DATA = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)  # columns to Left, rows to Inferior, slices to Posterior
ORDER = (3, 0, 4, 1, 2)
"""Slices in the order of the file."""
RAS = np.array([[-0.8, 0, 0, 10], [0, 0, -5.2, -20], [0, -0.9, 0, 30], [0, 0, 0, 1]])
"""Index -> RAS mm, by hand: LPS of the first voxel is (-10, 20, 30)."""


def _group(**values) -> list[Dataset]:
    result = Dataset()
    for name, value in values.items():
        setattr(result, name, value)
    return [result]


def _write(path, *, slices=ORDER, rescale=None, series="1.2.3.4", thickness=4.0, between=None, shift_mm=0.0):
    """Write slices of `DATA` as the frames of one enhanced file; `rescale` gives each one's (intercept, slope)."""
    path.parent.mkdir(exist_ok=True)
    result = Dataset()
    result.file_meta = FileMetaDataset()
    result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID = EnhancedMRImageStorage
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result.SeriesInstanceUID, result.StudyInstanceUID, result.Modality, result.InstanceNumber = series, "1.2.3", "MR", 1
    result.Rows, result.Columns, result.NumberOfFrames = 6, 4, len(slices)
    result.SamplesPerPixel, result.PhotometricInterpretation = 1, "MONOCHROME2"
    result.BitsAllocated = result.BitsStored = 16
    result.HighBit, result.PixelRepresentation = 15, 0
    measures = {"PixelSpacing": [0.9, 0.8], "SliceThickness": thickness, "SpacingBetweenSlices": between}
    result.SharedFunctionalGroupsSequence = _group(
        PixelMeasuresSequence=_group(**{name: value for name, value in measures.items() if value}),
        PlaneOrientationSequence=_group(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
    )
    frames = []
    for place, k in enumerate(slices):
        position = _group(ImagePositionPatient=[-10.0 + shift_mm * (k == 2), 20.0 + 5.2 * k, 30.0])
        frames += _group(PlanePositionSequence=position)
        if rescale:
            intercept, slope = rescale[place]
            frames[-1].PixelValueTransformationSequence = _group(RescaleIntercept=intercept, RescaleSlope=slope)
    result.PerFrameFunctionalGroupsSequence = frames
    result.PixelData = np.stack([DATA[:, :, k].T for k in slices]).astype("<u2").tobytes()
    result.save_as(path, enforce_file_format=True)
    return path


def _changed(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def test_frames_are_read_in_order_of_position_with_their_geometry(tmp_path, capfd):
    path = _write(tmp_path / "series" / "IM_0001")
    for place in (path, path.parent):
        image = read_image(place)
        np.testing.assert_array_equal(image.volume.data, DATA)
        np.testing.assert_allclose(image.volume.affine, RAS, atol=1e-9)
    assert not capfd.readouterr().err


def test_several_files_of_a_series_are_one_volume(tmp_path):
    """As scanners write one frame a file, or a few."""
    for number, slices in enumerate([(4,), (0, 2), (3, 1)]):
        _write(tmp_path / "series" / f"{number}.dcm", slices=slices)
    image = read_image(tmp_path / "series")
    np.testing.assert_array_equal(image.volume.data, DATA)
    np.testing.assert_allclose(image.volume.affine, RAS, atol=1e-9)


@pytest.mark.parametrize("first", [(0.0, 1.0), (-5.0, 0.5)])
def test_grey_values_are_scaled_frame_by_frame(tmp_path, first):
    scales = [first, (3.0, 2.0), (0.0, 1.0), (0.0, 0.25), (-100.0, 1.0)]
    image = read_image(_write(tmp_path / "a.dcm", rescale=scales))
    for (intercept, slope), k in zip(scales, ORDER, strict=True):
        np.testing.assert_allclose(image.volume.data[..., k], DATA[..., k] * slope + intercept, atol=1e-4)


def test_a_scale_of_all_frames_counts(tmp_path):
    path = _write(tmp_path / "a.dcm")
    scale = _group(RescaleIntercept=-7.0, RescaleSlope=2.0)
    _changed(path, lambda d: setattr(d.SharedFunctionalGroupsSequence[0], "PixelValueTransformationSequence", scale))
    np.testing.assert_array_equal(read_image(path).volume.data, DATA * 2.0 - 7)


@pytest.mark.parametrize(("values", "between_mm"), [({}, 4.0), ({"between": 5.5}, 5.5), ({"thickness": None}, 1.0)])
def test_a_lone_frame_is_as_thick_as_its_file_says(tmp_path, capsys, values, between_mm):
    image = read_image(_write(tmp_path / "a.dcm", slices=(2,), **values))
    assert image.volume.spacing_mm == pytest.approx((0.8, 0.9, between_mm))
    assert ("expected the spacing of its axes. Received: none" in capsys.readouterr().err) == (between_mm == 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slices": (0, 1, 2, 0, 1, 2)}, r"0\.000 mm from a\.dcm, frame 1 to a\.dcm, frame 4.*several images of each"),
        ({"slices": (0, 1, 2, 4)}, r"evenly spaced slices\. Received: 10\.4.* mm from a\.dcm, frame 3 to a\.dcm, fr"),
        ({"shift_mm": 0.5}, r"a\.dcm, frame 5 shifted within its plane by 0\.5"),
        ({"rescale": [(0.0, 1.0)] * 4 + [(0.0, 0.0)]}, r"finite intercept and slope.* Received: 0\.0\."),
    ],
)
def test_frames_that_are_no_one_volume_are_refused(tmp_path, values, message):
    with pytest.raises(DataError, match=rf"a\.dcm: expected .*{message}"):
        read_image(_write(tmp_path / "a.dcm", **values))


def _without(name):
    def change(dataset):
        del dataset[name]

    return change


def _without_a_position(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence


def _without_a_frame(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[0]


def _in_colour(dataset):
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = bytes(6 * 4 * 5 * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("PerFrameFunctionalGroupsSequence"), "the geometry of each frame. Received: 0 of 5 frames"),
        (_without("SharedFunctionalGroupsSequence"), "the orientation of each slice. Received: none in a.dcm, frame 1"),
        (_without_a_position, "the position of each slice. Received: none in a.dcm, frame 2"),
        (_without_a_frame, "the geometry of each frame. Received: 4 of 5 frames"),
        (_in_colour, "one real value a voxel. Received: a colour image"),
    ],
)
def test_a_file_that_lacks_what_a_scan_needs_is_refused(tmp_path, change, message):
    path = _write(tmp_path / "a.dcm")
    _changed(path, change)
    with pytest.raises(DataError, match=f"a.dcm: expected {message}"):
        read_image(path)


@pytest.mark.parametrize("size", [150, 200, 300, 400, 600, 900, 1200, -20])
def test_a_cut_file_is_refused(tmp_path, size):
    path = _write(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a.dcm"):
        read_image(path)


def test_a_series_in_one_file_is_a_case_of_a_folder(tmp_path):
    path = _write(tmp_path / "patient" / "IM_0001")
    assert image_names.list_images(tmp_path) == {"patient": path.parent}


def test_a_file_is_segmented_with_its_own_name(tmp_path, capsys):
    path = _write(tmp_path / "IM_0001")
    segment.main(segment.SegmentArguments(path, tmp_path / "mask.nii.gz"))
    np.testing.assert_allclose(read_image(tmp_path / "mask.nii.gz").volume.affine, RAS, atol=1e-4)
    assert "IM_0001" in capsys.readouterr().out

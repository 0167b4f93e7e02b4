"""Image files: names and masks by hand, round trips in all formats, a DICOM series, each bad input by its words."""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel import orientations
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.spatial.transform import Rotation

from femur_tf import dicom_series, header_geometry, text_header
from femur_tf.errors import DataError
from femur_tf.image_io import (
    Image,
    read_image,
    read_label_names,
    read_made_by,
    read_made_of,
    read_mask,
    scan_note,
    write_image,
)
from femur_tf.image_names import case_name, check_suffix, list_images
from femur_tf.volume import Volume

FILE_TOLERANCE_MM = 1e-4
"""Formats keep an affine in float32 or in decimal text."""

OBLIQUE = np.array(
    [[-0.96, -0.28, 0, 120.0], [-0.0784, 0.2688, -4.8, 80.0], [0.2688, -0.9216, -1.4, 40.0], [0, 0, 0, 1.0]]
)
"""A coronal stack of spacing 1, 1 and 5 mm, tilted twice, with axis codes L I P."""
RIGHT_ANGLED = np.array([[-0.8, 0.0, 3.0, 120.0], [0.6, 0.0, 4.0, 80.0], [0.0, -1.5, 0.0, 40.0], [0, 0, 0, 1.0]])
"""A rotated stack of spacing 1, 1.5 and 5 mm."""


def _data(shape=(4, 5, 6)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def _save(path: Path, data: np.ndarray, affine=OBLIQUE) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def scan(tmp_path) -> Image:
    return read_image(_save(tmp_path / "scan.nii.gz", _data()))


def _write_slice(path: Path, pixels: np.ndarray, position_mm, *, series: str, number: int) -> None:
    """Write a (rows, columns) uint16 slice whose columns run to Left and rows to Inferior (a coronal view)."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, "1.2.3"
    dataset.Modality, dataset.InstanceNumber, dataset.PatientID = "MR", number, "phantom"
    dataset.ImagePositionPatient = [f"{p:.4f}" for p in position_mm]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]  # LPS
    dataset.PixelSpacing, dataset.SliceThickness = [0.9, 0.8], 4.0  # between rows, between columns
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _write_series(
    folder: Path,
    *,
    number: int = 5,
    series: str = "1.2.3.4",
    skip: tuple[int, ...] = (),
    shift_mm=lambda k: (0.0, 0.0),
) -> np.ndarray:
    """Write coronal slices 5.2 mm apart, named against their order; return them as (x, y, z) = (L, I, P).

    Slice k is moved by `shift_mm(k)` within its plane, to Left and Superior.
    """
    folder.mkdir(exist_ok=True)
    data = _data((4, 6, number)).astype(np.uint16)
    for k in set(range(number)) - set(skip):
        left, superior = shift_mm(k)
        position_mm = (-10.0 + left, 20.0 + 5.2 * k, 30.0 + superior)  # LPS
        _write_slice(folder / f"{series}-{90 - k}.dcm", data[:, :, k].T, position_mm, series=series, number=k + 1)
    return data


# By hand


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("hip_01.nii.gz", "hip_01"),
        ("hip.v2.NII.GZ", "hip.v2"),
        ("a.nii", "a"),
        ("a.nrrd", "a"),
        ("a.Seg.nrrd", "a"),  # of 3D Slicer
        ("a.mhd", "a"),
        ("series_3", "series_3"),  # a DICOM folder
        ("notes.txt", "notes.txt"),
    ],
)
def test_case_name_is_the_name_without_image_suffixes(name, case):
    assert case_name(Path("folder") / name) == case


def test_a_folder_lists_its_cases_by_name(tmp_path):
    _save(tmp_path / "b.nii.gz", _data())
    _save(tmp_path / "a.nii", _data())
    _save(tmp_path / ".hidden.nii", _data())
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    _write_series(tmp_path / "c", number=2)
    cases = list_images(tmp_path)
    assert list(cases.items()) == [("a", tmp_path / "a.nii"), ("b", tmp_path / "b.nii.gz"), ("c", tmp_path / "c")]


def test_a_nifti_file_gives_its_voxels_affine_and_header(scan):
    np.testing.assert_array_equal(scan.volume.data, _data())
    assert scan.volume.data.dtype == np.int16
    np.testing.assert_allclose(scan.volume.affine, OBLIQUE, atol=FILE_TOLERANCE_MM)
    assert scan.header is not None
    assert scan.path.name == "scan.nii.gz"


def test_what_is_no_case_of_a_folder_is_said(tmp_path, capsys):
    _save(tmp_path / "a.nii", _data())
    sitk.WriteImage(sitk.GetImageFromArray(_data().T.copy()), str(tmp_path / "b.nhdr"))
    for name in ("a.json", "README.txt", "DICOMDIR", ".hidden", "cover.png", "x", "y"):
        (tmp_path / name).touch()
    assert list(list_images(tmp_path)) == ["a", "b"]
    told = capsys.readouterr()
    assert (
        f"{tmp_path}: 4 passed over, neither an image nor a folder of DICOM slices: README.txt, cover.png, x, and more"
        in told.out
    )
    assert not told.err


def test_series_that_lie_deeper_are_named_by_their_path(tmp_path, capsys):
    deep = ["P1/ST0/SE0", "P1/ST0/SE1.0", "P2/ST0/SE0", "SE0", "P3/.cache/SE0", ".trash/SE0"]
    for name in deep:
        (tmp_path / name).mkdir(parents=True)
        _write_series(tmp_path / name, number=1)
    (tmp_path / "P1" / "report.txt").touch()
    _save(tmp_path / "a.nii", _data())
    assert list_images(tmp_path) == {
        name: tmp_path / path for name, path in [("P1_ST0_SE0", deep[0]), ("P1_ST0_SE1.0", deep[1])]
    } | {"P2_ST0_SE0": tmp_path / deep[2], "SE0": tmp_path / "SE0", "a": tmp_path / "a.nii"}
    told = capsys.readouterr()
    assert "1 passed over, neither an image nor a folder of DICOM slices: P3\n" in told.out
    assert not told.err


def test_images_that_lie_deeper_are_no_cases(tmp_path):
    """Masks of an earlier run, for instance."""
    (tmp_path / "masks").mkdir()
    _save(tmp_path / "masks" / "a.nii.gz", _data())
    assert list_images(tmp_path) == {}


def test_each_file_of_a_tree_is_opened_once(tmp_path, monkeypatch):
    opened, real = [], Path.open
    (tmp_path / "P1" / "ST0").mkdir(parents=True)
    for name in ("P1/a", "P1/b", "P1/ST0/c"):
        (tmp_path / name).write_bytes(b"no slice")
    _write_series(tmp_path / "P1" / "ST0" / "SE0", number=3)
    monkeypatch.setattr(Path, "open", lambda path, *a: (opened.append(path.name), real(path, *a))[1])
    assert list(list_images(tmp_path)) == ["P1_ST0_SE0"]
    assert len(opened) == len(set(opened)) == 4  # of a series, the first slice


def test_links_in_a_circle_end_and_what_they_lead_to_is_found_once(tmp_path):
    _linked(tmp_path / "scans" / "P2" / "ST0" / "up", tmp_path / "scans")
    _linked(tmp_path / "scans" / "A", tmp_path / "scans" / "P2")  # before it by name
    _linked(tmp_path / "scans" / "P1", tmp_path / "elsewhere" / "P1")
    _linked(tmp_path / "elsewhere" / "P1" / "back", tmp_path / "scans" / "P1")
    _linked(tmp_path / "scans" / "hip_01", tmp_path / "scans" / "P2" / "ST0" / "SE1")  # a name of the user's
    for name in ("scans/P2/ST0/SE0", "scans/P2/ST0/SE1", "elsewhere/P1/SE0"):
        _write_series(tmp_path / name, number=1)
    assert list(list_images(tmp_path / "scans")) == ["P1_SE0", "P2_ST0_SE0", "hip_01"]


def _linked(link: Path, target: Path) -> None:
    """Make a link to a folder, and the folders that it takes."""
    for folder in (link.parent, target):
        folder.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


def test_series_below_a_folder_of_slices_are_warned_of(tmp_path, capsys):
    (tmp_path / "P1" / "ST0").mkdir(parents=True)
    for folder in (tmp_path / "P1", tmp_path / "P1" / "ST0" / "SE0"):
        _write_series(folder, number=1)
    assert list_images(tmp_path) == {"P1": tmp_path / "P1"}
    assert f"warning: {tmp_path / 'P1'}: DICOM files in {tmp_path / 'P1/ST0/SE0'} are passed over, as" in (
        capsys.readouterr().err
    )


def test_a_name_of_a_path_and_one_of_a_folder_are_told_apart(tmp_path):
    for name in ("P1/SE0", "P1_SE0"):
        (tmp_path / name).mkdir(parents=True)
        _write_series(tmp_path / name, number=1)
    with pytest.raises(DataError, match=r"P1_SE0: expected one image a case\. Received: P1/SE0 has the same case name"):
        list_images(tmp_path)


def _unreadable(monkeypatch, *names: str) -> None:
    """Refuse to open the files of these names, and to list their folders, as the system does to who may not."""
    for function in ("open", "iterdir"):
        real = getattr(Path, function)

        def refuse(path, *arguments, real=real, **options):
            if path.name in names:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(Path, function, refuse)


@pytest.mark.parametrize("name", ["lost+found", "disk/lost+found"])
def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch, capsys, name):
    _save(tmp_path / "a.nii", _data())
    (tmp_path / name).mkdir(parents=True)
    _unreadable(monkeypatch, "lost+found")
    assert list(list_images(tmp_path)) == ["a"]
    assert f"warning: {tmp_path / name}: expected a folder that can be read. Received: Permission" in (
        capsys.readouterr().err
    )


def test_a_file_that_may_not_be_read_stands_in_the_way_of_itself_alone(tmp_path, monkeypatch):
    for name in ("a.nii", "b.nii"):
        _save(tmp_path / name, _data())
    _write_series(tmp_path / "c")
    (first, *_) = sorted(path.name for path in (tmp_path / "c").iterdir())
    _unreadable(monkeypatch, "a.nii", first)
    assert not dicom_series.is_series(tmp_path)
    assert list(list_images(tmp_path)) == ["a", "b", "c"]


def test_intensity_scale_is_applied(tmp_path):
    path = _raw_nifti(tmp_path / "a.nii", scl_slope=2.0, scl_inter=10.0)
    np.testing.assert_array_equal(read_image(path).volume.data, 2.0 * _data((3, 4, 5)) + 10.0)


def test_a_fourth_axis_of_one_is_dropped(tmp_path):
    path = _save(tmp_path / "a.nii", _data((3, 4, 5))[..., None])
    np.testing.assert_array_equal(read_image(path).volume.data, _data((3, 4, 5)))


def test_a_dicom_series_has_the_geometry_of_its_slices(tmp_path):
    data = _write_series(tmp_path / "series")
    image = read_image(tmp_path / "series")
    np.testing.assert_array_equal(image.volume.data, data)
    assert image.header is None
    assert image.volume.spacing_mm == pytest.approx((0.8, 0.9, 5.2))
    expected = np.array([[-0.8, 0, 0, 10], [0, 0, -5.2, -20], [0, -0.9, 0, 30], [0, 0, 0, 1]])  # L I P, in RAS
    np.testing.assert_allclose(image.volume.affine, expected, atol=FILE_TOLERANCE_MM)


@pytest.mark.parametrize(
    ("values", "label", "expected"),
    [
        ([0, 1, 1], None, [False, True, True]),
        ([0, 7, 0], None, [False, True, False]),
        ([0, 1, 2], (2,), [False, False, True]),
        ([0, 1, 2], (1, 2), [False, True, True]),
        ([0, 1, 3], (2, 3), [False, False, True]),  # one femur in the field of view
        ([5, 5, 5], None, [True, True, True]),
        ([0, 0, 0], None, [False, False, False]),  # an empty mask is for the caller to judge
        ([0, 0, 0], (1,), [False, False, False]),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_mask_is_one_label(tmp_path, values, label, expected, dtype):
    like = read_image(_save(tmp_path / "scan.nii", _data((3, 1, 1))))
    path = _save(tmp_path / "mask.nii.gz", np.array(values, dtype).reshape(3, 1, 1))
    mask = read_mask(path, like=like, label=label)
    assert mask.dtype == bool
    assert mask[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("values", [[0.0, 1.0000000591], [0.0, 0.99999999977], [1e-9, 2.000004]])
def test_a_label_that_a_scale_has_rounded_is_that_label(tmp_path, values):
    like = read_image(_save(tmp_path / "scan.nii", _data((2, 1, 1))))
    path = _save(tmp_path / "mask.nii.gz", np.reshape(values, (2, 1, 1)))
    assert read_mask(path, like=like, label=(round(values[1]),))[:, 0, 0].tolist() == [False, True]


def test_a_mask_that_nibabel_scales_is_read(tmp_path):
    """As a float array under a header of integers, which is what `get_fdata` and the scan's header make."""
    like = read_image(_save(tmp_path / "scan.nii", _data((2, 1, 1))))
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    mask = np.array([0.0, 1.0]).reshape(2, 1, 1)
    nibabel.save(nibabel.Nifti1Image(mask, OBLIQUE, header), tmp_path / "mask.nii")
    assert nibabel.load(tmp_path / "mask.nii").get_fdata()[1] != 1
    assert read_mask(tmp_path / "mask.nii", like=like, label=None)[:, 0, 0].tolist() == [False, True]


# Properties


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("affine", [OBLIQUE, RIGHT_ANGLED], ids=["oblique", "right-angled"])
@pytest.mark.parametrize("header", [True, False], ids=["header", "no-header"])
def test_what_is_written_is_read_again(tmp_path, suffix, affine, header):
    like = read_image(_save(tmp_path / "scan.nii", _data(), affine))
    like = like if header else Image(like.volume, like.path)
    probability = np.linspace(0, 1, 120, dtype=np.float32).reshape(4, 5, 6)
    path = tmp_path / "deep" / f"out{suffix}"
    write_image(path, probability, like=like)
    result = read_image(path)
    np.testing.assert_array_equal(result.volume.data, probability)
    np.testing.assert_allclose(result.volume.affine, affine, atol=FILE_TOLERANCE_MM)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # nothing temporary is left
    np.testing.assert_array_equal(read_mask(_mask_of(tmp_path, path, like), like=like, label=None), probability > 0.5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_what_made_a_file_stands_in_its_header(tmp_path, suffix):
    scan = read_image(_save(tmp_path / "scan.nii", _data()))
    path, text = tmp_path / f"mask{suffix}", "femur_tf 0.1.0, femur 1, 0123456789ab"
    write_image(path, scan.volume.data > 60, like=scan, made_by=text)
    np.testing.assert_array_equal(read_image(path).volume.data, scan.volume.data > 60)
    if suffix.startswith(".nii"):
        assert read_made_by(path) == text
    else:
        assert sitk.ReadImage(str(path)).GetMetaData("made_by") == text


@pytest.mark.parametrize("content", [b"", b"no image", b"made_by = femur_tf"])
def test_a_file_that_says_nothing_of_its_making_says_nothing(tmp_path, content):
    (tmp_path / "mask.nii.gz").write_bytes(content)
    assert read_made_by(tmp_path / "mask.nii.gz") == read_made_of(tmp_path / "mask.nii.gz") == ""


def test_a_mask_notes_of_which_scan_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("P1", "P2"):
        (tmp_path / folder).mkdir()
        scan = read_image(_save(Path(folder) / "scan.nii.gz", _data()))
        write_image(Path(folder) / "mask.nii", scan.volume.data > 60, like=scan, made_by="femur_tf 0.1.0")
    one, other = (tmp_path / folder / "scan.nii.gz" for folder in ("P1", "P2"))
    assert [read_made_of(path.with_name("mask.nii")) for path in (one, other)] == [scan_note(one), scan_note(other)]
    assert scan_note(one) != scan_note(other)


def test_what_other_programs_write_in_the_place_of_the_note_is_none(tmp_path):
    source = nibabel.Nifti1Image(_data(), OBLIQUE)
    source.header["aux_file"] = b"scan of the left hip"
    nibabel.save(source, tmp_path / "scan.nii")
    scan = read_image(tmp_path / "scan.nii")
    write_image(tmp_path / "mask.nii", scan.volume.data > 60, like=scan)
    assert nibabel.load(tmp_path / "mask.nii").header["aux_file"] == b"scan of the left hip"
    assert read_made_of(tmp_path / "mask.nii") == ""


def _mask_of(tmp_path: Path, path: Path, like: Image) -> Path:
    """Write the mask of a probability file in the same format."""
    mask = tmp_path / f"mask{path.name.removeprefix('out')}"
    write_image(mask, read_image(path).volume.data > 0.5, like=like)
    return mask


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    suffix=st.sampled_from([".nii", ".nrrd", ".mha"]),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    dtype=st.sampled_from([bool, np.uint8, np.int16, np.int64, np.float16, np.float32]),
)
def test_any_shape_and_dtype_is_read_again(tmp_path, suffix, shape, dtype):
    like = Image(Volume(np.zeros(shape), RIGHT_ANGLED), Path("scan"))
    data = (np.arange(np.prod(shape)) % 2).astype(dtype).reshape(shape)
    write_image(tmp_path / f"a{suffix}", data, like=like)
    result = read_image(tmp_path / f"a{suffix}").volume
    np.testing.assert_array_equal(result.data, data)
    assert result.data.dtype == (np.float32 if np.issubdtype(dtype, np.floating) else np.uint8)


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_formats_of_two_files_are_read(tmp_path, suffix):
    image = sitk.GetImageFromArray(_data().T.copy())
    image.SetSpacing([1.0, 2.0, 3.0])
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    result = read_image(tmp_path / f"a{suffix}").volume
    np.testing.assert_array_equal(result.data, _data())
    np.testing.assert_allclose(result.affine, np.diag([-1.0, -2.0, 3.0, 1.0]), atol=1e-12)
    assert list(list_images(tmp_path)) == ["a"]  # the file of voxels is no case of its own


def test_a_nifti_result_keeps_the_header_of_its_scan(tmp_path):
    source = nibabel.Nifti1Image(_data(), RIGHT_ANGLED)
    source.set_sform(RIGHT_ANGLED, code="mni")
    source.set_qform(RIGHT_ANGLED, code="scanner")
    source.header.set_xyzt_units("mm", "sec")
    source.header["descrip"] = b"T1 TSE"
    source.header["cal_max"] = 900
    source.header.set_slope_inter(3.0, 7.0)
    nibabel.save(source, tmp_path / "scan.nii.gz")
    scan = read_image(tmp_path / "scan.nii.gz")
    write_image(tmp_path / "mask.nii.gz", scan.volume.data > 60, like=scan)
    written, original = (nibabel.load(tmp_path / name) for name in ("mask.nii.gz", "scan.nii.gz"))
    for field in ("pixdim", "qform_code", "sform_code", "xyzt_units", "descrip", "quatern_b", "srow_x", "qoffset_x"):
        np.testing.assert_array_equal(written.header[field], original.header[field])
    np.testing.assert_array_equal(written.affine, original.affine)
    assert written.get_data_dtype() == np.uint8
    assert written.dataobj.slope == 1 and written.dataobj.inter == 0
    assert written.header["cal_max"] == 0
    assert scan.header["descrip"] == b"T1 TSE" and scan.header.get_data_dtype() == np.int16  # its own is untouched


@pytest.mark.parametrize("code", ["sform", "qform"])
def test_a_scan_with_one_form_gets_results_with_that_form(tmp_path, code):
    source = nibabel.Nifti1Image(_data(), RIGHT_ANGLED)
    source.set_sform(RIGHT_ANGLED, code=1 if code == "sform" else 0)
    source.set_qform(RIGHT_ANGLED, code=1 if code == "qform" else 0)
    nibabel.save(source, tmp_path / "scan.nii")
    scan = read_image(tmp_path / "scan.nii")
    write_image(tmp_path / "mask.nii", scan.volume.data > 60, like=scan)
    header = nibabel.load(tmp_path / "mask.nii").header
    assert (header["sform_code"] > 0, header["qform_code"] > 0) == (code == "sform", code == "qform")
    read_mask(tmp_path / "mask.nii", like=scan, label=None)  # on the same grid


def test_nifti_2_stays_nifti_2(tmp_path):
    nibabel.save(nibabel.Nifti2Image(_data(), OBLIQUE), tmp_path / "scan.nii")
    scan = read_image(tmp_path / "scan.nii")
    write_image(tmp_path / "mask.nii", scan.volume.data > 60, like=scan)
    assert isinstance(nibabel.load(tmp_path / "mask.nii"), nibabel.Nifti2Image)


def test_big_endian_files_come_in_native_order(tmp_path):
    image = nibabel.Nifti1Image(_data(), OBLIQUE, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, tmp_path / "a.nii")
    result = read_image(tmp_path / "a.nii").volume.data
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, _data())


# Oracles


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_simpleitk_finds_each_voxel_where_we_wrote_it(tmp_path, suffix):
    like = Image(Volume(_data(), RIGHT_ANGLED), Path("scan"))
    write_image(tmp_path / f"a{suffix}", _data() + 300, like=like)
    image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    assert image.GetPixel(1, 2, 3) == _data()[1, 2, 3] + 300
    left, posterior, superior = image.TransformIndexToPhysicalPoint((1, 2, 3))
    expected = (RIGHT_ANGLED @ [1, 2, 3, 1])[:3]
    assert (-left, -posterior, superior) == pytest.approx(tuple(expected), abs=FILE_TOLERANCE_MM)


def test_simpleitk_and_nibabel_agree_on_a_dicom_series(tmp_path):
    _write_series(tmp_path / "series")
    scan = read_image(tmp_path / "series")
    write_image(tmp_path / "a.nii.gz", scan.volume.data, like=scan)
    result = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(result.affine, scan.volume.affine, atol=FILE_TOLERANCE_MM)
    assert result.header["qform_code"] == result.header["sform_code"] == 1
    assert result.header.get_xyzt_units()[0] == "mm"


def test_real_scans_and_masks_share_their_grids(hip_mri):
    images, masks = list_images(hip_mri / "images"), list_images(hip_mri / "masks")
    assert images and list(images) == list(masks)
    name = next(iter(images))
    scan = read_image(images[name])
    share = read_mask(masks[name], like=scan, label=None).mean()
    assert 0.001 < share < 0.05


def test_a_fill_value_that_squeezes_the_others_is_warned_of(tmp_path, capsys):
    data = _data((10, 10, 10))
    data[0, 0] = -32768
    path = _save(tmp_path / "a.nii", data)
    read_image(path)
    told = capsys.readouterr().err
    assert f"warning: {path}: expected grey values of the scan alone. Received: -32768 in 1.0% of the voxels" in told


# Errors


def _cut(source: Path, path: Path) -> Path:
    """Write the first half of a file."""
    content = source.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_truncated_file_is_refused(tmp_path, suffix, rng):
    data = rng.integers(0, 1000, (12, 12, 12)).astype(np.int16)
    write_image(tmp_path / f"a{suffix}", data, like=Image(Volume(data, OBLIQUE), Path("scan")))
    path = _cut(tmp_path / f"a{suffix}", tmp_path / f"cut{suffix}")
    with pytest.raises(DataError, match=rf"cut{suffix}: expected a whole image. Received: .* cut short"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("content", [b"", b"not an image" * 99], ids=["empty", "text"])
def test_a_file_that_only_has_the_name_of_an_image_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: expected a whole image. Received: .* not an image"):
        read_image(tmp_path / name)


def test_damage_within_a_compressed_file_is_refused(tmp_path, rng):
    path = _save(tmp_path / "a.nii.gz", rng.integers(0, 1000, (20, 20, 20)).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected a whole image"):
        read_image(path)


@pytest.fixture
def packed(tmp_path, rng):
    """Return a function that writes grey values packed, with the file that holds them."""

    def write(suffix: str) -> tuple[Path, Path]:
        image = sitk.GetImageFromArray(rng.integers(0, 1000, (40, 40, 40)).astype(np.int16))
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), useCompression=True)
        (voxels,) = (path for path in tmp_path.iterdir() if suffix in (".nrrd", ".mha") or path.suffix != suffix)
        return tmp_path / f"a{suffix}", voxels

    return write


PACKED = pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])


@PACKED
def test_damage_within_packed_voxels_is_refused_wherever_it_is(packed, suffix):
    """Of some damage, as of what makes more voxels than there are, the readers say nothing."""
    path, voxels = packed(suffix)
    assert read_image(path).volume.shape == (40, 40, 40)
    whole = voxels.read_bytes()
    for share in np.arange(0.1, 1, 0.1):
        content = bytearray(whole)
        content[int(share * len(content))] ^= 255
        voxels.write_bytes(content)
        with pytest.raises(DataError, match=rf"a{suffix}: expected a whole image\. Received: .*damaged"):
            read_image(path)


@PACKED
def test_packed_voxels_that_lack_their_end_are_refused(packed, suffix):
    path, voxels = packed(suffix)
    voxels.write_bytes(voxels.read_bytes()[:-6])
    with pytest.raises(DataError, match=rf"a{suffix}: expected a whole image\. Received: .*cut short"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("change", [-5000, 1, None])
def test_packed_voxels_of_another_size_than_the_header_says_are_refused(packed, suffix, change):
    path, voxels = packed(suffix)
    content = path.read_bytes()
    (found,) = re.findall(rb"CompressedDataSize = (\d+)\n", content)
    line = b"" if change is None else b"CompressedDataSize = %d\n" % (int(found) + change)
    path.write_bytes(content.replace(b"CompressedDataSize = %s\n" % found, line))
    if change is None and suffix == ".mhd":
        assert read_image(path).volume.shape == (40, 40, 40)  # they fill their file
        voxels.write_bytes(voxels.read_bytes() + b"more")
    with pytest.raises(DataError, match=rf"a{suffix}: expected a whole image\. Received: .*(ompressed|cannot be read)"):
        read_image(path)


def test_packed_voxels_in_several_members_are_read(packed):
    path, voxels = packed(".nhdr")
    content = gzip.decompress(voxels.read_bytes())
    before = read_image(path).volume.data
    voxels.write_bytes(gzip.compress(content[:999]) + gzip.compress(content[999:]))
    np.testing.assert_array_equal(read_image(path).volume.data, before)


@pytest.mark.parametrize(
    "header",
    [
        {"encoding": "raw"},
        {"encoding": "gzip", "lineskip": "1"},
        {"encoding": "gzip", "datafile": "a%03d.gz 1 9 1"},
        {"compresseddata": "False"},
        {"compresseddata": "True", "headersize": "99", "elementdatafile": "LOCAL"},
        {"compresseddata": "True", "elementdatafile": "LIST"},
        {},
    ],
)
def test_voxels_that_only_the_reader_finds_are_left_to_it(tmp_path, header):
    text_header.check_packed(header, io.BytesIO(b"not packed"), tmp_path)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(DataError, match=r"no\.nii: expected an image file or a DICOM folder. Received: nothing there"):
        read_image(tmp_path / "no.nii")


def test_another_file_is_refused_with_the_formats_known(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    with pytest.raises(DataError, match=r"expected \.nii, \.nii\.gz, .* or a DICOM folder\. Received: another file"):
        read_image(tmp_path / "a.png")


def test_a_single_dicom_file_points_to_its_folder(tmp_path):
    _write_series(tmp_path, number=1)
    with pytest.raises(DataError, match="Hand in its folder"):
        read_image(next(tmp_path.iterdir()))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_four_axes_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.Image([3, 4, 5, 2], sitk.sitkInt16), str(path))
    with pytest.raises(DataError, match=rf"a{suffix}: .*expected a 3-D array.*\(3, 4, 5, 2\).*Hand in one 3-D volume"):
        read_image(path)


def test_two_axes_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([3, 4], sitk.sitkInt16), str(tmp_path / "a.mha"))
    with pytest.raises(DataError, match=r"expected a 3-D image .* Received: shape \(3, 4\)"):
        read_image(tmp_path / "a.mha")
    with pytest.raises(DataError, match=r"expected a 3-D array .* shape=\(3, 4\)"):
        read_image(_save(tmp_path / "a.nii", np.zeros((3, 4), np.int16)))


SEGMENTS = """NRRD0004
type: unsigned char
dimension: {dimension}
space: left-posterior-superior
sizes: {sizes}
space directions: {directions} (1,0,0) (0,1,0) (0,0,2)
kinds: {kinds} domain domain domain
encoding: raw
space origin: (0,0,0)
Segment0_ID:=Segment_1
Segment0_LabelValue:=1
Segment0_Name:=femur

"""
"""A header of 3D Slicer: layers are the first axis, where there are several."""


def _segments(path: Path, data: np.ndarray) -> Path:
    """Write a segmentation as 3D Slicer does, (layer, x, y, z) or (x, y, z)."""
    directions, kinds = ("none", "list") if data.ndim == 4 else ("", "")
    sizes = " ".join(map(str, data.shape))
    header = SEGMENTS.format(dimension=data.ndim, sizes=sizes, directions=directions, kinds=kinds)
    path.write_bytes(header.encode() + data.astype(np.uint8).tobytes(order="F"))
    return path


def test_a_segmentation_of_slicer_is_a_mask_of_its_scan(tmp_path):
    like = read_image(_save(tmp_path / "scan.nii", _data((3, 4, 5)), np.diag([-1.0, -1.0, 2.0, 1.0])))
    path = _segments(tmp_path / "scan.seg.nrrd", _data((3, 4, 5)) > 30)
    np.testing.assert_array_equal(read_mask(path, like=like, label=None), like.volume.data > 30)
    assert read_label_names(path) == {1: "femur"}


def test_other_masks_name_no_values(tmp_path, scan):
    write_image(tmp_path / "mask.nrrd", scan.volume.data > 60, like=scan, made_by="femur_tf 0.1.0")
    assert read_label_names(tmp_path / "mask.nrrd") == read_label_names(scan.path) == {}


def test_segments_that_overlap_are_refused_with_the_way_out(tmp_path, scan):
    path = _segments(tmp_path / "mask.seg.nrrd", np.ones((2, 4, 5, 6)))
    with pytest.raises(
        DataError, match=r"expected segments that do not overlap\. Received: shape \(4, 5, 6\), 2 v.*as a labelmap"
    ):
        read_mask(path, like=scan, label=None)


def test_colours_and_complex_values_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([3, 4, 5], sitk.sitkVectorUInt8, 3), str(tmp_path / "a.nrrd"))
    with pytest.raises(DataError, match=r"Received: shape .* 3 values a voxel"):
        read_image(tmp_path / "a.nrrd")
    with pytest.raises(DataError, match=r"expected one real value a voxel\. Received: complex64"):
        read_image(_save(tmp_path / "a.nii", np.zeros((3, 4, 5), np.complex64)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_voxels_that_are_not_finite_are_counted(tmp_path, bad, suffix):
    data = np.ones((3, 4, 5), np.float32)
    data[0, 0, :2] = bad
    write_image(tmp_path / f"a{suffix}", data, like=Image(Volume(data, OBLIQUE), Path("scan")))
    with pytest.raises(DataError, match=r"expected finite voxels\. Received: 2 of 60 NaN or infinite"):
        read_image(tmp_path / f"a{suffix}")


def _raw_nifti(path: Path, **fields) -> Path:
    """Write a NIfTI file with header fields as they are, unchecked."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((3, 4, 5))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["pixdim"][1:4] = fields.pop("spacing", (1, 1, 1))
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4) + _data((3, 4, 5)).tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spacing": (1, 1, 0)}, r"expected non-zero voxel spacing. Received: \[1.0, 1.0, 0.0\] mm"),
        ({"spacing": (1, np.nan, 1)}, "expected non-zero voxel spacing"),
        ({"sform_code": 1, "srow_x": [1, 0, 0, 0], "srow_y": [0, 1, 0, 0]}, "three axes of non-zero spacing"),
        ({"sform_code": 1, "srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0], "srow_z": [0, 0, 1, 0]}, "span space"),
        ({"xyzt_units": 1}, "expected lengths in mm. Received: metres"),
        ({"xyzt_units": 3}, "expected lengths in mm. Received: micrometres"),
        ({"xyzt_units": 4}, "expected lengths in mm. Received: the unit with code 4"),
        ({"xyzt_units": 255}, "expected lengths in mm. Received: the unit with code 7"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_nifti_file_without_proper_geometry_is_refused(tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        read_image(_raw_nifti(tmp_path / "a.nii", **fields))


LEFT_OPEN_NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 3 4 5\nencoding: raw\nendian: little\n"
LEFT_OPEN_MHA = "ObjectType = Image\nNDims = 3\nDimSize = 3 4 5\nElementType = MET_SHORT\n"
DIRECTIONS = "space directions: (1,0,0) (0,1,0) (0,0,2)\n"


def _raw_text(path: Path, geometry: str) -> Path:
    """Write a NRRD or MetaImage file whose header says this of its geometry."""
    last = "ElementDataFile = LOCAL\n"
    header = f"{LEFT_OPEN_NRRD}{geometry}\n" if path.suffix == ".nrrd" else f"{LEFT_OPEN_MHA}{geometry}{last}"
    path.write_bytes(header.encode() + _data((3, 4, 5)).tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    ("suffix", "geometry", "left_open", "axes", "spacing"),
    [
        (".nii", "", "orientation", "left, anterior, superior", "1 x 1 x 2 mm"),  # nibabel's, as of Analyze files
        (".nrrd", "spacings: 1 1 2\n", "orientation", "left, posterior, superior", "1 x 1 x 2 mm"),
        (".nrrd", "spacings: 1 1 -2\n", "orientation", "left, posterior, inferior", "1 x 1 x 2 mm"),
        (".nrrd", "", "orientation and spacing", "left, posterior, superior", "1 x 1 x 1 mm"),
        (".nrrd", "space: scanner-xyz\n" + DIRECTIONS, "orientation", "left, posterior, superior", "1 x 1 x 2 mm"),
        (".nrrd", "space dimension: 3\n" + DIRECTIONS, "orientation", "left, posterior, superior", "1 x 1 x 2 mm"),
        (".mha", "ElementSpacing = 1 1 2\n", "orientation", "left, posterior, superior", "1 x 1 x 2 mm"),
        (".mha", "ElementSize = 1 1 2\n", "orientation", "left, posterior, superior", "1 x 1 x 2 mm"),
        (".mha", "AnatomicalOrientation = RAI\n", "orientation and spacing", "left, posterior, superior", "1 x 1 x 1"),
        (".mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "spacing", "left, posterior, superior", "1 x 1 x 1 mm"),
    ],
)
def test_what_a_file_leaves_open_is_warned_of_once(tmp_path, capsys, suffix, geometry, left_open, axes, spacing):
    path = tmp_path / f"a{suffix}"
    path = _raw_nifti(path, spacing=(1, 1, 2)) if suffix == ".nii" else _raw_text(path, geometry)
    scan = read_image(path)
    np.testing.assert_array_equal(scan.volume.data, _data((3, 4, 5)))
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1
    assert f"warning: {path}: expected the {left_open} of its axes. Received: none. Assumed: " in told
    assert f"axes run to the patient's {axes}, with {spacing}" in told
    assert ("Left and right may be wrong" in told) == ("orientation" in left_open)
    read_mask(_raw_mask(tmp_path, path), like=scan, label=None)
    assert not capsys.readouterr().err  # said of the scan, on whose grid a mask must lie


def _raw_mask(folder: Path, path: Path) -> Path:
    """Write a mask with the header of a file that `_raw_nifti` or `_raw_text` wrote."""
    content, values = path.read_bytes(), (_data((3, 4, 5)) > 30).astype("<i2").tobytes(order="F")
    mask = folder / f"mask{path.suffix}"
    mask.write_bytes(content[: -len(values)] + values)
    return mask


@pytest.mark.parametrize(
    ("suffix", "geometry"),
    [
        (".nrrd", "space: right-anterior-superior\n" + DIRECTIONS),
        (".nrrd", "space: LPS\n# a comment\nkey:=value\nkinds: domain domain domain\n" + DIRECTIONS),
        (".nrrd", "Space: LAS\r\nSpaceDirections: (1,0,0) (0,1,0) (0,0,2)\n"),
        (".mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 2\n"),
        (".mha", "Orientation = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 2\n"),
        (".mha", "Rotation: 1 0 0 0 1 0 0 0 1\nElementSize: 1 1 2\n"),
    ],
)
def test_a_file_with_its_geometry_is_not_warned_of(tmp_path, capsys, suffix, geometry):
    assert read_image(_raw_text(tmp_path / f"a{suffix}", geometry)).volume.spacing_mm == (1, 1, 2)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("code", ["sform_code", "qform_code"])
def test_one_form_of_a_nifti_file_is_geometry_enough(tmp_path, capsys, code):
    rows = {f"srow_{axis}": row for axis, row in zip("xyz", np.eye(4)[:3], strict=True)}
    read_image(_raw_nifti(tmp_path / "a.nii", **{code: 1}, **rows))
    assert not capsys.readouterr().err


def _two_forms(path: Path, sform: np.ndarray, qform: np.ndarray, spacing_mm=None, qform_code: int = 1) -> Path:
    """Write a NIfTI file with two forms, of spacings and all."""
    header = nibabel.Nifti1Header()
    header.set_qform(qform, qform_code)
    header.set_sform(sform, 1)
    if spacing_mm:
        header["pixdim"][1:4] = spacing_mm
    nibabel.Nifti1Image(_data(), None, header).to_filename(path)
    return path


MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0])
TWICE = np.diag([2.0, 2.0, 2.0, 1.0])
MOVED = np.eye(4) + 0.6 * np.eye(4, k=3)
NEAR = np.eye(4) + 0.4 * np.eye(4, k=3)


@pytest.mark.parametrize(
    ("sform", "qform", "options", "words"),
    [
        (
            MIRRORED,
            np.eye(4),
            {},
            "sform and qform differ, by up to 6 mm. Taken: the sform, axes run to the patient's left,",
        ),
        (np.eye(4), MOVED, {}, "sform and qform differ, by up to 0.6 mm"),
        (
            np.eye(4),
            TWICE,
            {"qform_code": 0},
            "sform and pixdim differ, pixdim is 2 x 2 x 2 mm. Taken: the sform, axes",
        ),
        (np.eye(4), np.eye(4), {"spacing_mm": (1, 1, 1.02), "qform_code": 0}, "pixdim is 1 x 1 x 1.02 mm"),
    ],
)
def test_two_geometries_in_one_nifti_file_are_warned_of_once(tmp_path, capsys, sform, qform, options, words):
    path = _two_forms(tmp_path / "a.nii", sform, qform, **options)
    np.testing.assert_array_equal(read_image(path).volume.affine, sform)
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1
    assert f"warning: {path}: expected one geometry. Received: " in told
    assert words in told


@pytest.mark.parametrize(
    ("sform", "qform", "options"),
    [
        (OBLIQUE, OBLIQUE, {}),
        (np.eye(4), NEAR, {}),
        (np.eye(4), MIRRORED, {"qform_code": 0}),
        (np.eye(4), np.eye(4), {"spacing_mm": (1, 1, 1.009), "qform_code": 0}),
        (np.eye(4), np.eye(4), {"spacing_mm": (-1, 1, 1), "qform_code": 0}),
    ],
)
def test_two_forms_that_agree_are_not_warned_of(tmp_path, capsys, sform, qform, options):
    read_image(_two_forms(tmp_path / "a.nii", sform, qform, **options))
    assert not capsys.readouterr().err


def test_a_qform_that_is_no_rotation_is_warned_of(tmp_path, capsys):
    rows = {f"srow_{axis}": row for axis, row in zip("xyz", np.eye(4)[:3], strict=True)}
    read_image(_raw_nifti(tmp_path / "a.nii", sform_code=1, qform_code=1, quatern_b=2, **rows))
    assert "Received: a sform, and a qform that is no rotation. Taken: the sform" in capsys.readouterr().err


def test_what_nibabel_saves_is_not_warned_of(tmp_path, capsys):
    image = nibabel.Nifti1Image(_data(), np.eye(4))
    image.set_qform(np.eye(4), 1)
    nibabel.save(image, tmp_path / "a.nii")
    loaded = nibabel.load(tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(_data(), OBLIQUE, loaded.header), tmp_path / "b.nii")
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(tmp_path / "b.nii")), tmp_path / "c.nii")
    for name in "abc":
        read_image(tmp_path / f"{name}.nii")
    assert not capsys.readouterr().err


def test_real_scans_are_not_warned_of(hip_mri, capsys):
    for path in list_images(hip_mri / "images").values():
        read_image(path)
    assert not capsys.readouterr().err


SHEARED = np.eye(4) + 0.35 * np.eye(4, k=2)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd"])
def test_a_sheared_volume_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".nii":
        _save(path, _data(), SHEARED)
    else:
        _raw_text(path, "space: LPS\nspace directions: (1,0,0) (0,1,0) (0.35,0,1)\n")
    with pytest.raises(
        DataError, match=r"at right angles\. Received: axes 70\.7 degrees apart, a sheared volume\. Resa"
    ):
        read_image(path)


def test_axes_that_rounding_turns_are_at_right_angles():
    header_geometry.check_axes(np.eye(4) + 0.0099 * np.eye(4, k=2))
    with pytest.raises(ValueError, match=r"89\.4 degrees apart"):
        header_geometry.check_axes(np.eye(4) + 0.0101 * np.eye(4, k=2))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_what_we_write_is_not_warned_of(tmp_path, capsys, suffix):
    write_image(tmp_path / f"a{suffix}", _data(), like=Image(Volume(_data(), OBLIQUE), Path("scan")))
    read_image(tmp_path / f"a{suffix}")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "lengths",
    ["spacings: 1 1 NaN", "spacings: nan nan nan", "space: LPS\nspace directions: (1,0,0) (0,2,0) none"],
)
def test_an_nrrd_file_with_a_spacing_that_is_none_is_refused(tmp_path, lengths):
    said = lengths.rpartition(": ")[2]
    with pytest.raises(DataError, match=rf"a\.nrrd: expected .*spacing of each axis\. Received: {re.escape(said)}\."):
        read_image(_raw_text(tmp_path / "a.nrrd", lengths + "\n"))


def test_a_last_axis_of_one_needs_no_spacing(tmp_path):
    header = LEFT_OPEN_NRRD.replace("dimension: 3\nsizes: 3 4 5", "dimension: 4\nsizes: 3 4 5 1")
    path = tmp_path / "a.nrrd"
    path.write_bytes(f"{header}spacings: 1 1 2 nan\n\n".encode() + _data((3, 4, 5)).tobytes(order="F"))
    assert read_image(path).volume.shape == (3, 4, 5)


@pytest.mark.parametrize("content", [{}, {"notes.txt": b"no slice"}, {".hidden": b"\0" * 128 + b"DICM"}])
def test_a_folder_without_dicom_is_refused(tmp_path, content):
    for name, values in content.items():
        (tmp_path / name).write_bytes(values)
    with pytest.raises(DataError, match=r"expected one DICOM series\. Received: no DICOM file in it"):
        read_image(tmp_path)


def test_two_series_in_a_folder_are_named(tmp_path):
    _write_series(tmp_path / "both", series="1.2.3.4", number=3)
    for index in range(3):
        _changed(tmp_path / "both", index, SeriesNumber=301, SeriesDescription="t1_tse_cor ")
    _write_series(tmp_path / "both", series="1.2.3.5", number=2)
    first, second = r"number 301, t1_tse_cor, 3 slices", r"number unknown, no description, 2 slices"
    words = rf"Received: 2 series: 1\.2\.3\.4\S* \({first}\), 1\.2\.3\.5\S* \({second}\)\. .*of just one series"
    with pytest.raises(DataError, match=words):
        read_image(tmp_path / "both")


def test_a_missing_slice_is_noticed(tmp_path):
    _write_series(tmp_path / "series", number=6, skip=(2,))
    with pytest.raises(
        DataError, match=r"expected evenly spaced slices. Received: 10\.400 mm from .*, 5\.200 mm usual"
    ):
        read_image(tmp_path / "series")


def test_a_doubled_slice_is_noticed(tmp_path):
    _write_series(tmp_path / "series")
    pixels = np.zeros((6, 4), np.uint16)
    _write_slice(tmp_path / "series" / "again.dcm", pixels, (-10.0, 30.4, 30.0), series="1.2.3.4", number=9)
    with pytest.raises(DataError, match=r"expected evenly spaced slices\. Received: .* again\.dcm"):
        read_image(tmp_path / "series")


@pytest.mark.parametrize("number", [2, 3, 5])
def test_slices_at_one_place_are_refused(tmp_path, number):
    for k in range(number):
        pixels = np.full((6, 4), k, np.uint16)
        (tmp_path / "series").mkdir(exist_ok=True)
        _write_slice(tmp_path / f"series/{k}.dcm", pixels, (-10.0, 20.0, 30.0), series="1.2.3.4", number=k + 1)
    with pytest.raises(DataError, match=r"expected evenly spaced slices\. Received: 0\.000 mm from .*several images"):
        read_image(tmp_path / "series")


@pytest.mark.parametrize(
    "shift_mm",
    [
        lambda k: (1.5 * k, 0.0),  # each within 5 % of the usual gap, 5.412 mm
        lambda k: (0.0, -1.5 * k),
        lambda k: (0.3 * k, 0.0),  # a tilt of 3 degrees: 1.2 mm over the stack
        lambda k: (1.0 * (k % 2), 0.0),
    ],
    ids=["to the left", "down", "a little each", "to and fro"],
)
def test_a_staggered_stack_is_refused(tmp_path, shift_mm):
    _write_series(tmp_path / "series", shift_mm=shift_mm)
    with pytest.raises(DataError, match=r"series: expected slices one straight behind the other\. .*dcm shifted .* mm"):
        read_image(tmp_path / "series")


def test_rounding_noise_in_positions_is_no_stagger(tmp_path, rng):
    noise_mm = rng.uniform(-0.05, 0.05, (5, 2))  # positions in tenths of a mm
    data = _write_series(tmp_path / "series", shift_mm=lambda k: noise_mm[k])
    np.testing.assert_array_equal(read_image(tmp_path / "series").volume.data, data)


def test_cosines_of_three_decimals_are_no_stagger():
    """An oblique stack of 200 mm whose positions are exact and whose cosines are rounded."""
    turned = Rotation.from_euler("xyz", (31.0, -17.0, 44.0), degrees=True).as_matrix()
    row, column, normal = turned.T
    texts = ["\\".join(f"{c:.3f}" for c in (*row, *column)), "0.5\\0.5"]
    tags = [header_geometry.ORIENTATION, header_geometry.SPACING]
    slices = [
        dict(zip(tags, texts, strict=True))
        | {header_geometry.POSITION: "\\".join(f"{p:.6f}" for p in 4.0 * k * normal)}
        for k in range(51)
    ]
    header_geometry.check([str(k) for k in range(51)], slices)


def _changed(folder, index, **values):
    """Change attributes of one slice of a series; None removes one."""
    path = sorted(folder.iterdir())[index]
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, "slices of one orientation"),
        ({"PixelSpacing": [1.8, 1.6]}, "slices of one pixel spacing"),
        ({"PixelSpacing": None}, r"the pixel spacing of each slice\. Received: none in .*dcm"),
        ({"ImageOrientationPatient": None}, "the orientation of each slice"),
        ({"ImagePositionPatient": None}, "the position of each slice"),
    ],
)
def test_slices_that_are_not_of_one_stack_are_refused(tmp_path, values, words):
    _write_series(tmp_path / "series")
    _changed(tmp_path / "series", 2, **values)
    with pytest.raises(DataError, match=rf"series: expected {words}"):
        read_image(tmp_path / "series")


@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("size", [0, 100, 400, -20])
def test_a_cut_slice_at_the_end_of_a_series_is_refused(tmp_path, number, size):
    _write_series(tmp_path / "series")
    path = sorted((tmp_path / "series").iterdir())[number]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"expected a whole series\. Received: {re.escape(path.name)}, which cannot"):
        read_image(tmp_path / "series")


@pytest.mark.parametrize("harm", [lambda old: b"", lambda old: old[:100], lambda old: bytes(len(old))])
@pytest.mark.parametrize("number", [0, 4])
def test_a_harmed_slice_is_known_by_its_name(tmp_path, number, harm):
    _write_series(tmp_path / "series")
    for path in (tmp_path / "series").iterdir():
        path.rename(path.with_name(f"IM{path.stem[-2:]}"))
    path = sorted((tmp_path / "series").iterdir())[number]
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=rf"expected a whole series\. Received: {path.name}, which cannot"):
        read_image(tmp_path / "series")


def test_other_files_beside_a_series_are_passed_over(tmp_path):
    data = _write_series(tmp_path / "series")
    (tmp_path / "series" / "notes.txt").write_text("no slice")
    (tmp_path / "series" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    np.testing.assert_array_equal(read_image(tmp_path / "series").volume.data, data)


def test_dicom_files_that_are_no_images_are_passed_over(tmp_path):
    data = _write_series(tmp_path / "series")
    for name in ("state.dcm", "state"):  # a presentation state has no pixels
        _write_slice(
            tmp_path / "series" / name, np.zeros((6, 4), np.uint16), (0.0, 0.0, 0.0), series="1.2.3.9", number=1
        )
        state = pydicom.dcmread(tmp_path / "series" / name)
        state.file_meta.MediaStorageSOPClassUID = state.SOPClassUID = "1.2.840.10008.5.1.4.1.1.11.1"
        state.Modality = "PR"
        for tag in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(state, tag)
        state.save_as(tmp_path / "series" / name, enforce_file_format=True)
    np.testing.assert_array_equal(read_image(tmp_path / "series").volume.data, data)


def test_a_folder_with_a_table_of_contents_alone_is_no_series(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    _write_series(tmp_path / "one")
    assert not dicom_series.is_series(tmp_path)
    assert list(list_images(tmp_path)) == ["one"]


@pytest.mark.parametrize("slopes", [(1, 1000, 1, 1), (1, 1.5, 1, 0.25), (0.5, 0.5, 0.5, 0.5)])
def test_each_slice_has_its_own_grey_values(tmp_path, slopes):
    data = _write_series(tmp_path / "series", number=4)
    for number, slope in enumerate(slopes):
        _changed(tmp_path / "series", 3 - number, RescaleSlope=slope, RescaleIntercept=-3)
    np.testing.assert_array_equal(read_image(tmp_path / "series").volume.data, data * np.array(slopes) - 3)


@pytest.mark.parametrize("slice_of_8_bits", [0, 4])
def test_slices_of_several_pixel_types_keep_their_grey_values(tmp_path, slice_of_8_bits):
    data = _write_series(tmp_path / "series") + np.uint16(200)
    for k in range(5):
        kind = np.uint8 if k == slice_of_8_bits else np.uint16
        data[:, :, k] = data[:, :, k].astype(kind)
        values = {"BitsAllocated": 8 * kind().itemsize, "BitsStored": 8 * kind().itemsize}
        pixels = data[:, :, k].T.astype(kind)
        _changed(tmp_path / "series", 4 - k, HighBit=values["BitsStored"] - 1, PixelData=pixels.tobytes(), **values)
    np.testing.assert_array_equal(read_image(tmp_path / "series").volume.data, data)


def test_a_first_slice_with_a_sign_does_not_wrap_the_others(tmp_path):
    data = _write_series(tmp_path / "series")
    data[0, 0, 1:] = 40000
    for k in range(1, 5):
        _changed(tmp_path / "series", 4 - k, PixelData=data[:, :, k].T.tobytes())
    _changed(tmp_path / "series", 4, PixelRepresentation=1)
    np.testing.assert_array_equal(read_image(tmp_path / "series").volume.data, data)


def test_a_series_whose_positions_are_rounded_is_read_without_a_word(tmp_path, capfd):
    _write_series(tmp_path / "series", shift_mm=lambda k: (0.05 * (k % 2), 0.0))
    for k in (0, 2):
        _changed(tmp_path / "series", 4 - k, ImagePositionPatient=[-10.0, 20.0 + 5.2 * k + 0.01, 30.0])
    read_image(tmp_path / "series")
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("values", "between_mm"),
    [({}, 4.0), ({"SpacingBetweenSlices": 5.5}, 5.5), ({"SliceThickness": None}, 1.0)],
)
def test_a_slice_alone_is_as_thick_as_its_file_says(tmp_path, capsys, values, between_mm):
    _write_series(tmp_path / "series", number=1)
    _changed(tmp_path / "series", 0, **values)
    assert read_image(tmp_path / "series").volume.spacing_mm[2] == pytest.approx(between_mm, abs=FILE_TOLERANCE_MM)
    assert ("expected the spacing of its axes. Received: none" in capsys.readouterr().err) == (between_mm == 1.0)


@pytest.mark.parametrize("size", [4000, 30000])
def test_a_header_of_a_size_that_no_memory_holds_is_refused(tmp_path, size):
    path = _save(tmp_path / "a.nii", _data())
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([size] * 3, "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii: expected a whole image"):
        read_image(path)


@pytest.mark.parametrize("name", ["A.MHA", "A.NRRD", "A.NII", "A.NII.GZ"])
def test_suffixes_in_capitals_are_written_and_read(tmp_path, scan, name):
    write_image(tmp_path / name, scan.volume.data, like=scan)
    np.testing.assert_array_equal(read_image(tmp_path / name).volume.data, scan.volume.data)
    assert {path.name for path in tmp_path.iterdir()} == {name, "scan.nii.gz"}


def test_a_case_in_the_folder_at_hand_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "hip_01").mkdir()
    monkeypatch.chdir(tmp_path / "hip_01")
    assert case_name(Path()) == case_name(Path("../hip_01")) == "hip_01"
    assert case_name(Path("..")) == tmp_path.name


def test_a_slice_of_several_frames_is_refused(tmp_path):
    _write_series(tmp_path / "series", number=1)
    frames = np.zeros((3, 6, 4), "<u2")
    _changed(tmp_path / "series", 0, NumberOfFrames=3, PixelData=frames.tobytes())
    with pytest.raises(DataError, match=r"expected one slice a file\. Received: .*dcm with 3 frames\. .*dcm2niix"):
        read_image(tmp_path / "series")


def test_slices_of_unequal_size_are_refused(tmp_path):
    _write_series(tmp_path / "series")
    pixels = np.zeros((9, 9), np.uint16)
    _write_slice(tmp_path / "series" / "other.dcm", pixels, (-10.0, 46.0, 30.0), series="1.2.3.4", number=9)
    with pytest.raises(DataError, match="series: expected a whole image"):
        read_image(tmp_path / "series")


@pytest.mark.parametrize(
    ("shape", "change", "message"),
    [
        ((4, 5, 7), 0.0, r"shape: expected \(4, 5, 6\). Received: \(4, 5, 7\)"),
        ((4, 5, 6), 0.02, r"affine: expected .*120\.0\].* Received: .*120\.02\].* up to 0\.02 mm away"),
    ],
)
def test_a_mask_on_another_grid_is_refused(tmp_path, scan, shape, change, message):
    affine = OBLIQUE.copy()
    affine[0, 3] += change
    path = _save(tmp_path / "mask.nii", np.zeros(shape, np.uint8), affine)
    with pytest.raises(DataError, match=rf"mask\.nii: not on the grid of .*scan\.nii\.gz: {message}"):
        read_mask(path, like=scan, label=None)


def test_a_mask_with_a_rounded_header_is_on_the_grid_of_its_image(tmp_path):
    affine = OBLIQUE @ np.diag([0.9114583, 0.9114583, 1.0, 1.0])
    scan = read_image(_save(tmp_path / "scan.nii", np.zeros((384, 384, 2), np.int16), affine))
    rounded = _save(tmp_path / "mask.nii", np.ones((384, 384, 2), np.uint8), affine.round(5))
    assert read_mask(rounded, like=scan, label=None).all()


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "AIR"])
@pytest.mark.parametrize("degrees", [0.0, 45.0])
def test_a_mask_in_another_axis_order_is_on_the_grid_of_its_image(tmp_path, codes, degrees):
    """As of a copy that was converted for drawing. At 45 degrees, rounding decides which axes are canonical."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ np.diag([0.9, 0.9, 3.0])
    scan = read_image(_save(tmp_path / "scan.nii", _data(), affine.round(4)))
    turn = orientations.axcodes2ornt(codes)
    data = orientations.apply_orientation((_data() > 60).astype(np.uint8), turn)
    path = _save(tmp_path / "mask.nii", data, affine @ orientations.inv_ornt_aff(turn, (4, 5, 6)))
    np.testing.assert_array_equal(read_mask(path, like=scan, label=None), _data() > 60)


def test_a_mask_of_a_mirrored_affine_is_refused(tmp_path):
    """Same shape and spacing, so that only the affine tells."""
    scan = read_image(_save(tmp_path / "scan.nii", _data((4, 4, 4)), np.eye(4)))
    path = _save(tmp_path / "mask.nii", np.zeros((4, 4, 4), np.uint8), np.diag([-1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(DataError, match=r"up to 3 mm away.*Resample the mask"):
        read_mask(path, like=scan, label=None)


@pytest.mark.parametrize(
    ("values", "label", "message"),
    [
        ([0, 1, 2], None, r"expected one label besides 0. Received: 1, 2. Pass --label N .* or --label N,M"),
        ([0, 1, 2], (3,), r"expected label 3. Received: labels 1, 2. Pass --label N"),
        ([0, 1, 2], (3, 4), r"expected label 3 or 4. Received: labels 1, 2. Pass --label N"),
        ([0, 1, 1], (0,), r"expected label 0. Received: labels 1"),  # 0 is the background, never the femur
        ([0, 0.25, 1], None, r"expected whole numbers as labels. Received: 0\.25\. .*not a probability map"),
        (list(range(30)), None, r"Received: 1, 2, .*, 10, and more\. Pass"),
        (list(range(102)), None, r"expected a mask\. Received: 101 values\. Is it a scan, and scans and masks are"),
    ],
)
def test_a_mask_with_other_values_is_refused(tmp_path, values, label, message):
    like = read_image(_save(tmp_path / "scan.nii", _data((len(values), 1, 1))))
    path = _save(tmp_path / "mask.nii", np.array(values, np.float32).reshape(-1, 1, 1))
    with pytest.raises(DataError, match=message):
        read_mask(path, like=like, label=label)


def test_a_chosen_label_may_be_one_of_very_many(tmp_path):
    like = read_image(_save(tmp_path / "scan.nii", _data((118, 1, 1))))
    path = _save(tmp_path / "mask.nii", np.arange(118, dtype=np.uint8).reshape(-1, 1, 1))
    assert read_mask(path, like=like, label=(75,)).sum() == 1


@pytest.mark.parametrize("name", ["out.png", "out", "out.nhdr", "out.mhd", "out.nii.bz2"])
def test_an_output_of_another_format_is_refused(tmp_path, scan, name):
    with pytest.raises(DataError, match=r"expected a name that ends in \.nii, \.nii\.gz, \.nrrd, \.mha. Received: out"):
        write_image(tmp_path / name, scan.volume.data, like=scan)
    assert not (tmp_path / name).exists()


def test_a_suffix_to_write_is_checked_alone():
    assert check_suffix(Path("a.NII.GZ")) == ".nii.gz"
    with pytest.raises(DataError, match=r"a\.png: expected a name that ends in"):
        check_suffix(Path("a.png"))


def test_data_on_another_grid_are_not_written(tmp_path, scan):
    with pytest.raises(ValueError, match=r"expected the image's shape \(4, 5, 6\). Received: \(4, 5, 5\)"):
        write_image(tmp_path / "out.nii", np.zeros((4, 5, 5)), like=scan)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_full_disk_leaves_the_old_result(tmp_path, scan, suffix, monkeypatch):
    path = tmp_path / f"out{suffix}"
    write_image(path, scan.volume.data, like=scan)
    before = path.read_bytes()
    monkeypatch.setattr("femur_tf.files.secrets.token_hex", lambda _: "drawn")
    (tmp_path / f".partial-drawn-out{suffix}").symlink_to("/dev/full")
    monkeypatch.setattr("femur_tf.files.remove", lambda path: None)  # keeps the full device under the temporary name
    with pytest.raises(DataError, match=rf"out{suffix}: expected room for an image"):
        write_image(path, np.random.default_rng(0).normal(size=(4, 5, 6)), like=scan)
    assert path.read_bytes() == before


def test_a_folder_to_list_must_be_one(tmp_path):
    path = _save(tmp_path / "a.nii", _data())
    with pytest.raises(DataError, match=r"expected a folder of images\. Received: a file"):
        list_images(path)
    with pytest.raises(DataError, match=r"expected a folder of images\. Received: nothing there"):
        list_images(tmp_path / "no")


def test_two_files_of_one_case_are_refused(tmp_path):
    _save(tmp_path / "a.nii", _data())
    _save(tmp_path / "a.nii.gz", _data())
    with pytest.raises(DataError, match=r"a\.nii\.gz: expected one image a case. Received: a\.nii has the same case"):
        list_images(tmp_path)


# Edges


def test_a_folder_without_images_lists_none(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert list_images(tmp_path) == {}
    assert not dicom_series.is_series(tmp_path)
    assert not dicom_series.is_series(tmp_path / "notes.txt")


@pytest.mark.parametrize("number", [1, 2])
def test_short_series_are_read(tmp_path, number):
    data = _write_series(tmp_path / "series", number=number)
    assert dicom_series.is_series(tmp_path / "series")
    np.testing.assert_array_equal(read_image(tmp_path / "series").volume.data, data)


def test_an_existing_result_is_replaced_whole(tmp_path, scan):
    for value in (1, 2):
        write_image(tmp_path / "out.nii.gz", np.full((4, 5, 6), value), like=scan)
    assert np.unique(read_image(tmp_path / "out.nii.gz").volume.data).tolist() == [2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 255], np.uint8), (np.array([0, 256], np.int16), np.int16), (np.array([-1, 0], np.int32), np.int32)],
)
def test_integers_are_stored_small_where_they_fit(tmp_path, values, expected):
    like = Image(Volume(np.zeros((2, 1, 1)), np.eye(4)), Path("scan"))
    write_image(tmp_path / "a.nii", np.reshape(values, (2, 1, 1)), like=like)
    assert read_image(tmp_path / "a.nii").volume.data.dtype == expected


def test_what_a_header_says_of_a_patient_does_not_go_into_a_mask(tmp_path):
    image = nibabel.Nifti1Image(_data(), np.eye(4))
    image.header["db_name"] = b"Mueller"
    image.header.set_intent("none", name="Mueller")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Mueller"))
    nibabel.save(image, tmp_path / "scan.nii")
    assert b"Mueller" in (tmp_path / "scan.nii").read_bytes()
    scan = read_image(tmp_path / "scan.nii")
    write_image(tmp_path / "mask.nii", scan.volume.data > 60, like=scan)
    assert b"Mueller" not in (tmp_path / "mask.nii").read_bytes()
    np.testing.assert_array_equal(read_image(tmp_path / "mask.nii").volume.affine, np.eye(4))

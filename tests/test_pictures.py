"""femur_tf.pictures: which slices are shown, which way up, and what is drawn on them."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from femur_tf import metrics, pictures
from femur_tf.pictures import Slice
from femur_tf.volume import Volume

PNG = b"\x89PNG\r\n\x1a\n"


def _box(shape, *sides):
    """A bool volume, true in one box of (start, stop) pairs."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def _pixels(png):
    """PNG -> (down, across, 3) uint8."""
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)


def _has_colour(png, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(_pixels(png).astype(int) - wanted).max(axis=-1) <= 12).any())


@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [
        ((1, 1, 1), [(1, 4), (2, 8), (0, 2)]),  # coronal, axial, sagittal, each the first with most bone
        ((1, 1, 1.9), [(1, 4), (2, 8), (0, 2)]),
        ((1, 2, 1), [(1, 5), (1, 7), (1, 9), (1, 11), (2, 8)]),  # eight slices from 4: the middle of each quarter
        ((1, 1, 2), [(2, 8), (2, 9), (1, 4)]),  # two slices of bone: no slice twice
        ((3, 1, 1), [(0, 2), (0, 3), (0, 4), (0, 5), (2, 8)]),
    ],
)
def test_slices_run_through_the_bone(spacing_mm, expected):
    bone = _box((10, 20, 12), (2, 6), (4, 12), (8, 10))
    assert pictures.choose_slices(bone, spacing_mm) == [Slice(*pair) for pair in expected]


def test_slices_between_two_bones_are_not_shown():
    bone = _box((40, 9, 9), (2, 8), (4, 8), (4, 8)) | _box((40, 9, 9), (30, 36), (4, 8), (4, 8))
    assert [one.index for one in pictures.choose_slices(bone, (5, 1, 1))[:4]] == [3, 6, 31, 34]


def test_a_line_of_bone_gives_its_planes():
    assert pictures.choose_slices(_box((3, 3, 3), (1, 2), (2, 3), (0, 1)), (1, 1, 1)) == [
        Slice(1, 2),
        Slice(2, 0),
        Slice(0, 1),
    ]


@pytest.mark.parametrize(
    ("cutoff", "expected"),
    [(1.0, (0, 0)), (0.9, (0, 0.5)), (0.5, (0, 0.5)), (0.4, (0.5, 1)), (0.0, (1, 1))],  # p >= cut-off is bone
)
def test_the_point_of_a_cutoff(cutoff, expected):
    roc = metrics.roc(np.array([0.9004, 0.4001, 0.4001, 0.1]), np.array([True, True, False, False]))
    assert pictures.roc_point(roc, cutoff) == expected


def test_the_patients_left_is_drawn_on_the_right():
    data = np.zeros((20, 20, 20), np.float32)
    data[:5] = 100  # canonical x is low: the patient's left
    upright = _pixels(pictures.overlay_png(Volume(data, np.eye(4)), np.zeros(data.shape, bool)))
    coronal = upright[60:-60, : upright.shape[1] // 3]
    bright = np.flatnonzero((coronal[coronal.shape[0] // 4] == 255).all(axis=-1))
    dark = np.flatnonzero((coronal[coronal.shape[0] // 4] == 0).all(axis=-1))
    assert np.median(bright[(bright > dark.min()) & (bright < coronal.shape[1] - 12)]) > np.median(dark)


def test_both_outlines_have_their_colour():
    image = Volume(np.random.default_rng(1).integers(0, 99, (16, 16, 16)), np.eye(4))
    mask, reference = _box(image.shape, (2, 8), (2, 8), (2, 8)), _box(image.shape, (4, 12), (4, 12), (4, 12))
    both, alone = pictures.overlay_png(image, mask, reference), pictures.overlay_png(image, mask)
    assert both.startswith(PNG)
    assert _has_colour(both, pictures.MASK_COLOUR)
    assert _has_colour(both, pictures.REFERENCE_COLOUR)
    assert not _has_colour(alone, pictures.REFERENCE_COLOUR)


@pytest.mark.parametrize("cutoff", [0.0, 0.5, 1.0])
def test_a_roc_picture_is_a_png(cutoff, monkeypatch):
    labels = []
    save = Figure.savefig

    def savefig(figure, *args, **kwargs):
        axes = figure.axes[0]
        labels.append((axes.get_xlabel(), axes.get_ylabel()))
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    roc = metrics.roc(np.array([0.9, 0.4]), np.array([True, False]))
    assert pictures.roc_png(roc, 1.0, cutoff).startswith(PNG)
    assert labels == [("false positive rate (1 - specificity)", "true positive rate (sensitivity)")]


def test_bars_are_means_with_a_dot_for_each_case(monkeypatch):
    drawn = []
    save = Figure.savefig

    def savefig(figure, *args, **kwargs):
        (axes,) = figure.axes
        drawn.append(([bar.get_height() for bar in axes.patches], [t.get_text() for t in axes.texts], axes.lines))
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    assert pictures.bars_png({"dice": [0.8, 0.9], "ppv": [1.0, np.nan, 0.5]}).startswith(PNG)
    heights, texts, lines = drawn[0]
    assert heights == pytest.approx([0.85, 0.75])  # an empty mask has no PPV
    assert texts == ["0.850", "0.750"]
    assert [0.8, 0.9] in [list(line.get_ydata()) for line in lines]


@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_any_axis_order_shows_the_same_slices(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(signs) @ np.diag([1.0, 2.5, 1.0]))[:, order]
    bone = _box((6, 7, 8), (1, 5), (2, 6), (3, 7))
    own = np.flip(bone, [axis for axis in range(3) if signs[axis] < 0]).transpose(order)
    image = Volume(own.astype(np.float32), affine)
    upright = pictures._canonical_mask(own, image)
    np.testing.assert_array_equal(upright, bone)


def test_a_mask_on_another_grid_is_refused():
    image = Volume(np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(ValueError, match=r"reference: expected the image's shape \(4, 4, 4\)\. Received: \(4, 4, 5\)"):
        pictures.overlay_png(image, np.zeros((4, 4, 4), bool), np.zeros((4, 4, 5), bool))


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 1, 4)])
@pytest.mark.parametrize("full", [False, True])
def test_constant_images_with_empty_and_full_masks_are_drawn(shape, full):
    image = Volume(np.full(shape, 7, np.int16), np.diag([1, 1, 4, 1]))
    assert pictures.overlay_png(image, np.full(shape, full), np.full(shape, not full)).startswith(PNG)

"""Pictures as PNG: masks as contours on slices of their image, the ROC curve, measures as bars.

Slices are canonical planes in the radiologist's view: the patient's left is on the
right of axial and coronal planes, and anterior is on the left of sagittal ones.
matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from femur_tf import metrics
from femur_tf.volume import Volume, canonical

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MASK_COLOUR, REFERENCE_COLOUR = "#ff5a36", "#35d0ff"
PLANE_NAMES = ("sagittal", "coronal", "axial")
"""The plane across canonical x, y and z."""
FIRST_SIDES = ("left", "back", "feet")
"""Where counting begins: a file may count its slices from the other end."""
ANISOTROPY = 2.0
"""A volume whose coarsest spacing is at least this many times its finest is shown slice by slice."""
COLUMNS = 3
DPI = 100


@dataclasses.dataclass(frozen=True)
class Slice:
    """One plane of a canonical volume: slice `index` across `axis` (0 x, 1 y, 2 z)."""

    axis: int
    index: int


def overlay_png(image: Volume, mask: np.ndarray, reference: np.ndarray | None = None) -> bytes:
    """Draw an image in grey with the contours of a mask and of a reference on it, true to mm.

    Args:
      image: (X, Y, Z), any axis order.
      mask: bool, on the image's grid.
      reference: likewise; None where there is none.

    Returns:
      The bytes of a PNG file.

    Raises:
      ValueError: a mask of another shape.
    """
    contours = {"mask": mask} if reference is None else {"mask": mask, "reference": reference}
    for name, array in contours.items():
        if array.shape != image.shape:
            raise ValueError(f"{name}: expected the image's shape {image.shape}. Received: {array.shape}")
    grey = canonical(image)
    upright = {name: _canonical_mask(array, image) for name, array in contours.items()}
    slices = choose_slices(np.logical_or.reduce(list(upright.values())), grey.spacing_mm)
    return _draw_slices(grey, upright, slices)


def choose_slices(bone: np.ndarray, spacing_mm: tuple[float, float, float]) -> list[Slice]:
    """Return the slices that show a case.

    Args:
      bone: bool (X, Y, Z), canonical: what the pictures are to show; all slices count where it is empty.
      spacing_mm: of the grid.

    Returns:
      Four slices across the coarsest axis, evenly spread over those that hold bone, and the plane across z (across y,
      where z is the coarsest) with most bone in it; of a volume of about equal spacings, the fullest plane across each
      axis.
    """
    if not bone.any():
        bone = np.ones_like(bone)
    if max(spacing_mm) < ANISOTROPY * min(spacing_mm):
        return [_fullest(bone, axis) for axis in (1, 2, 0)]
    coarse = int(np.argmax(spacing_mm))
    inside = np.flatnonzero(bone.any(axis=tuple(axis for axis in range(3) if axis != coarse)))
    chosen = sorted({int(inside[int((k + 0.5) / 4 * inside.size)]) for k in range(4)})
    return [*(Slice(coarse, index) for index in chosen), _fullest(bone, 1 if coarse == 2 else 2)]


def roc_png(roc: metrics.Roc, auc: float, cutoff: float) -> bytes:
    """Draw a ROC curve, as Figure 3 of the source, with the point of the cut-off."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(roc.false_positive_rate, roc.true_positive_rate, color="#1f5fbf", label=f"ROC, AUC {auc:.4f}")
    axes.plot([0, 1], [0, 1], "--", color="#9aa4b2", label="chance")
    axes.plot(*roc_point(roc, cutoff), "o", color="#d9480f", label=f"cut-off {cutoff:.4f}")
    axes.set(xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (sensitivity)")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return png(figure)


def bars_png(values: Mapping[str, Sequence[float]]) -> bytes:
    """Draw the mean of each measure over cases as a bar with its standard deviation, as Figure 4 of the source.

    Args:
      values: for each measure, by name, its value in [0, 1] of each case.

    Returns:
      The bytes of a PNG file; each case is a dot on its bars.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    known = [np.array(found)[np.isfinite(found)] for found in values.values()]  # an empty mask has no PPV
    means, deviations = ([float(f(found)) if found.size else np.nan for found in known] for f in (np.mean, np.std))
    axes.bar(list(values), means, yerr=deviations, width=0.6, color="#a9c4ee", edgecolor="#1f5fbf", capsize=6)
    for place, found in enumerate(values.values()):
        axes.plot([place] * len(found), found, "o", color="#d9480f", markersize=4, alpha=0.8)
        axes.annotate(f"{means[place]:.3f}", (place, 0.02), ha="center")
    axes.set(ylabel="mean and standard deviation over cases", ylim=(0, 1.05))
    axes.grid(alpha=0.3, axis="y")
    return png(figure)


def roc_point(roc: metrics.Roc, cutoff: float) -> tuple[float, float]:
    """Return false and true positive rate of mask = probability >= cutoff."""
    index = np.flatnonzero(roc.thresholds >= cutoff)[-1]  # entry 0 is infinity: there is always one
    return float(roc.false_positive_rate[index]), float(roc.true_positive_rate[index])


def _fullest(bone: np.ndarray, axis: int) -> Slice:
    """Return the slice across an axis with most bone voxels, the first of equal ones."""
    others = tuple(a for a in range(3) if a != axis)
    return Slice(axis, int(bone.sum(axis=others).argmax()))


def _canonical_mask(mask: np.ndarray, image: Volume) -> np.ndarray:
    """Return a mask on the image's grid with canonical axes, bool."""
    return canonical(Volume(mask.astype(np.uint8), image.affine)).data > 0


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


def _draw_slices(grey: Volume, contours: dict[str, np.ndarray], slices: Sequence[Slice]) -> bytes:
    """Draw slices side by side, `COLUMNS` in a row, under one legend."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = math.ceil(len(slices) / COLUMNS)
    figure = Figure(figsize=(11, 3.7 * rows + 0.4), layout="constrained")
    window = tuple(np.percentile(grey.data, (1, 99.5)))
    for place, wanted in enumerate(slices):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        _draw_slice(axes, grey, contours, wanted, window)
    colours = {"mask": MASK_COLOUR, "reference": REFERENCE_COLOUR}
    lines = [Line2D([], [], color=colours[name], label=name) for name in contours]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return png(figure)


def _draw_slice(
    axes: Axes, grey: Volume, contours: dict[str, np.ndarray], wanted: Slice, window: tuple[float, float]
) -> None:
    """Draw one slice, turned so that the patient's left (or, sagittal, the back) is on the right."""
    from matplotlib import patheffects

    across, down = (axis for axis in range(3) if axis != wanted.axis)
    width_mm, height_mm = (grey.shape[axis] * grey.spacing_mm[axis] for axis in (across, down))
    extent = (0.0, width_mm, 0.0, height_mm)
    picture = grey.data.take(wanted.index, axis=wanted.axis).T  # (down, across)
    axes.imshow(picture, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", extent=extent)
    for name, colour in (("reference", REFERENCE_COLOUR), ("mask", MASK_COLOUR)):
        if name in contours and contours[name].take(wanted.index, axis=wanted.axis).any():
            _draw_contour(axes, contours[name].take(wanted.index, axis=wanted.axis).T, extent, colour)
    axes.set(xlim=(width_mm, 0), ylim=(0, height_mm), aspect="equal", xticks=[], yticks=[])
    number = f"{wanted.index + 1} of {grey.shape[wanted.axis]} from the {FIRST_SIDES[wanted.axis]}"
    axes.set_title(f"{PLANE_NAMES[wanted.axis]}, {number}", fontsize=10)
    place, text = (0.97, "L") if across == 0 else (0.03, "A")
    side = "right" if across == 0 else "left"
    mark = axes.text(place, 0.5, text, transform=axes.transAxes, color="white", weight="bold", va="center", ha=side)
    mark.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="black")])  # on fat, too


def _draw_contour(axes: Axes, bone: np.ndarray, extent: tuple[float, float, float, float], colour: str) -> None:
    """Draw the outline of a bool plane (down, across), closed where it meets the border."""
    down, across = bone.shape
    x = (np.arange(-1, across + 1) + 0.5) * extent[1] / across
    y = (np.arange(-1, down + 1) + 0.5) * extent[3] / down
    axes.contour(x, y, np.pad(bone, 1).astype(np.float32), levels=[0.5], colors=[colour], linewidths=1.1)

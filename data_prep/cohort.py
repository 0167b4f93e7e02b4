"""The cohort: pair images with masks, measure each case, refuse what cannot be used.

Images and masks pair by file name without suffixes. Measuring a case reads it whole
and refuses a mask on another grid or with other values, an empty mask, a constant
image, voxels that are no numbers; over the cohort, one image under two names. What can
be used but looks wrong beside the other cases is for `data_prep.suspicions`.

Measures are taken on canonical axes: x to the patient's right, y anterior, z superior.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from scipy import ndimage

from femur_tf import image_io, image_names, intensity, postprocess, volume
from femur_tf.config import NormalisationConfig
from femur_tf.errors import DataError
from femur_tf.patch_config import Triple
from femur_tf.volume import Volume, canonical, spacings_agree

_ALL_NEIGHBOURS = np.ones((3, 3, 3), bool)
_BORDERS = (("left", "right"), ("posterior", "anterior"), ("lower", "upper"))
_CHANNEL = re.compile(r"_\d{4}$")
"""What nnU-Net's images end in, and its masks do not."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and the mask of the same name."""

    name: str
    image: Path
    mask: Path


@dataclasses.dataclass(frozen=True)
class Pairing:
    """What two folders hold."""

    pairs: tuple[Pair, ...]
    """In the order of their names."""
    images_alone: tuple[str, ...]
    """Names of images without a mask."""
    masks_alone: tuple[str, ...]
    """Names of masks without an image."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was measured of a case."""

    name: str
    shape: tuple[int, int, int]
    """Voxels along canonical x, y, z."""
    spacing_mm: Triple
    """Along canonical x, y, z."""
    axis_codes: str
    """Directions in which the axes of the file run, such as LIP."""
    image_digest: str
    """Equal for equal voxel values on canonical axes, whatever the file format."""
    mask_digest: str
    parts: tuple[int, ...]
    """Voxels of each connected part of the femur mask (26-connected), largest first."""
    femurs_mm3: tuple[float, ...]
    """Volume of each part that is no stray island, from the patient's left to right."""
    borders: tuple[str, ...]
    """Borders of the volume that the femur touches, the lower one (the shaft's) left out."""
    half: Literal["left", "right", "both"]
    """Half of the volume, on the patient's left or right, that holds all of the femur but stray islands."""
    medians: float
    """`intensity.Limits.medians` of the scan: how far its brightest voxels lie above its foreground."""
    label_names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Value -> name, of the mask values that were chosen, where the mask names them."""

    @property
    def femur_mm3(self) -> float:
        """Volume of the whole mask."""
        return float(sum(self.parts) * np.prod(self.spacing_mm))


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a case cannot be used."""

    name: str
    message: str


def pair(images: Path, masks: Path) -> Pairing:
    """Pair the images of one folder with the masks of another by file name.

    Raises:
      FileNotFoundError, DataError: a folder that `image_names.list_images` refuses, or no pair at all.
    """
    found, drawn = image_names.list_images(images), image_names.list_images(masks)
    both = sorted(found.keys() & drawn.keys())
    if not both:
        channels = any(_CHANNEL.sub("", name) in drawn for name in found)
        raise DataError(
            f"{images}, {masks}: expected images and masks of the same file names. Received: {len(found)} images "
            f"({_first(found)}), {len(drawn)} masks ({_first(drawn)}). Name each mask as its image"
            + (": leave out the channel at the end, such as _0000." if channels else ".")
        )
    broken = [name for name in both if not name.isprintable()]
    if broken:
        raise DataError(
            f"{images}: expected names of cases in UTF-8, without control characters. Received: "
            f"{', '.join(map(repr, broken))}. Rename their files."
        )
    return Pairing(
        tuple(Pair(name, found[name], drawn[name]) for name in both),
        tuple(sorted(found.keys() - drawn.keys())),
        tuple(sorted(drawn.keys() - found.keys())),
    )


def _first(names: Iterable[str]) -> str:
    """Return up to three of the names, for a message."""
    return ", ".join(sorted(names)[:3]) or "none"


def measure(files: Pair, label: Collection[int] | None) -> Facts | tuple[Problem, ...]:
    """Read a case and measure it, or say why it cannot be used.

    Args:
      files: the case.
      label: the mask values that are femur; None: the one value besides 0.

    Returns:
      What was measured, or all problems found. A case is independent of the others, so this runs in parallel.
    """
    try:
        image = image_io.read_image(files.image)
        reference = image_io.read_mask(files.mask, like=image, label=label)
        names = image_io.read_label_names(files.mask) if label else {}
    except (DataError, OSError) as error:
        return (Problem(files.name, str(error)),)
    problems = _unusable(files, image.volume.data, reference)
    chosen = {value: name for value, name in names.items() if value in (label or ())}
    return problems or dataclasses.replace(_facts(files.name, image.volume, reference), label_names=chosen)


def _unusable(files: Pair, data: np.ndarray, reference: np.ndarray) -> tuple[Problem, ...]:
    """Return why a case that was read holds nothing to learn from."""
    found = []
    if data.min() == data.max():
        found.append(f"{files.image}: expected an image. Received: a constant, every voxel is {data.flat[0]}")
    if not reference.any():
        found.append(f"{files.mask}: expected a mask of the femur. Received: an empty mask. Draw it or remove the case")
    return tuple(Problem(files.name, message) for message in found)


def _facts(name: str, image: Volume, reference: np.ndarray) -> Facts:
    """Measure a usable case."""
    upright = canonical(image)
    mask = canonical(Volume(reference, image.affine)).data
    labels, count = ndimage.label(mask, _ALL_NEIGHBOURS)
    voxels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    femurs = np.flatnonzero(voxels >= postprocess.PART_SHARE * voxels.max()) + 1
    centroids = ndimage.center_of_mass(mask, labels, femurs)
    left_to_right = femurs[np.argsort([x for x, _, _ in centroids])]
    whole = np.isin(labels, femurs)
    return Facts(
        name,
        shape=tuple(mask.shape),
        spacing_mm=upright.spacing_mm,
        axis_codes="".join(nibabel.aff2axcodes(image.affine)),
        image_digest=_digest(upright.data.astype(np.float32)),
        mask_digest=_digest(mask),
        parts=tuple(sorted(voxels.tolist(), reverse=True)),
        femurs_mm3=tuple(float(voxels[part - 1] * np.prod(upright.spacing_mm)) for part in left_to_right),
        borders=_borders(whole),
        half=_half(whole),
        medians=intensity.limits(intensity.without_fill(image).data, NormalisationConfig()).medians,
    )


def _digest(data: np.ndarray) -> str:
    """Return a digest of an array's values and shape."""
    return hashlib.sha256(repr(data.shape).encode() + np.ascontiguousarray(data).tobytes()).hexdigest()


def _borders(mask: np.ndarray) -> tuple[str, ...]:
    """Return the borders that a canonical mask touches, the lower one left out: the shaft may leave there."""
    return tuple(
        name
        for axis, names in enumerate(_BORDERS)
        for name, place in zip(names, (0, -1), strict=True)
        if name != "lower" and mask.take(place, axis=axis).any()
    )


def _half(mask: np.ndarray) -> Literal["left", "right", "both"]:
    """Return the half of the volume, along its first axis, that holds all of a canonical mask."""
    held = np.flatnonzero(mask.any(axis=(1, 2)))
    if held[-1] < mask.shape[0] // 2:
        return "left"
    return "right" if held[0] >= mask.shape[0] - mask.shape[0] // 2 else "both"


def duplicates(facts: Sequence[Facts]) -> tuple[Problem, ...]:
    """Return a problem for each case whose image holds the same voxels as an earlier one."""
    first: dict[str, str] = {}
    found = []
    for case in facts:
        earlier = first.setdefault(case.image_digest, case.name)
        if earlier != case.name:
            message = f"expected another image in each case. Received: the voxels of {earlier}. Remove one of the two"
            found.append(Problem(case.name, message))
    return tuple(found)


def names_of_copies(names: Collection[str]) -> tuple[Problem, ...]:
    """Return a problem for each case named as the varied copies of another are: NAME~1, NAME~2."""
    found = []
    for name in names:
        of, tilde, number = name.rpartition("~")
        if tilde and number.isdecimal() and of in names:
            message = f"expected a name that no copy has. Received: {name}, which is a varied copy of {of}. Rename it"
            found.append(Problem(name, message))
    return tuple(found)


def median_spacing(facts: Sequence[Facts]) -> Triple:
    """Return the median spacing along canonical x, y, z over the cases, rounded to 0.001 mm."""
    x, y, z = np.median([case.spacing_mm for case in facts], axis=0).round(3).tolist()
    return x, y, z


def resampled(case: Facts, spacing_mm: Triple) -> bool:
    """Return whether a case is resampled on its way to the working spacing."""
    return not spacings_agree(case.spacing_mm, spacing_mm)


def working_shape(case: Facts, spacing_mm: Triple) -> tuple[int, int, int]:
    """Return the voxels of a case on the working grid, along canonical x, y, z.

    Raises:
      DataError: too many, as where a file gives lengths in another unit than mm.
    """
    if not resampled(case, spacing_mm):
        return case.shape
    try:
        return volume.working_shape(case.shape, case.spacing_mm, spacing_mm)
    except ValueError as error:
        raise DataError(f"{case.name}: {error}") from error


def millimetres(lengths: Iterable[float]) -> str:
    """Return lengths as a person reads them, such as 0.911 x 5.2 x 0.911 mm."""
    return " x ".join(f"{round(length, 3):g}" for length in lengths) + " mm"

"""A synthetic hip MR with its true femur mask: the cohort of someone who has no data yet.

A coronal T1 stack of a pelvis. Bones are smooth unions of cones and ellipsoids, known
by their signed distance in mm (negative inside), so that the true mask is geometry at
the voxel centres and owes nothing to the image. The image paints tissue over tissue by
those distances. Marrow of femur and pelvis and fat are of like brightness, and a thin
dark line is all that parts the femoral head from its socket: intensity alone cannot
find the femur.

Points are (3, ...) float32 in RAS mm; the hips lie either side of the origin. `side` is
-1 for the patient's left and 1 for the right. All proportions are our choice, a small
adult's.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from femur_tf import solids
from femur_tf.volume import Volume

FAT, MARROW, MUSCLE, ORGAN, CARTILAGE, CORTEX = 0.80, 0.74, 0.28, 0.42, 0.32, 0.06
"""Brightness of each tissue before texture, coil and noise; air is 0."""
FULL_SCALE = 700.0
"""Stored intensity of brightness 1."""
SLICE_SHARE = 0.77
"""Slice thickness over slice spacing: 4 mm of 5.2 mm, the rest is gap."""
SUBSLICES = 3
"""Planes averaged over the thickness of a slice; odd, so that the middle one holds the voxel centres."""
TEXTURE_WAVES = 8
COIL_WAVES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic case."""

    image: Volume
    """int16, (X, Y, Z), axis codes L I P."""
    mask: np.ndarray
    """bool, (X, Y, Z): both femurs, cortex included."""


@dataclasses.dataclass(frozen=True)
class Hip:
    """One side: the femur, the pelvic bone and the joint between them."""

    frame: solids.Frame
    head_mm: float
    """Radius of the femoral head."""
    joint_mm: float
    """Width of the joint, from the head to its socket."""
    shaft_top_z: float
    """The height below which the cortex thickens."""
    femur: tuple[solids.Solid, ...]
    pelvis: tuple[solids.Solid, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Anatomy:
    """All that chance draws of one patient, but for the noise."""

    hips: tuple[Hip, Hip]
    size: float
    organs: tuple[solids.Solid, ...]
    width_mm: float
    """Half of the body's width at the hips."""
    fat_mm: float
    """Depth of the subcutaneous fat."""
    marrow: float
    """Brightness of the marrow."""
    texture: np.ndarray
    """Wave vectors in rad/mm and a phase, (TEXTURE_WAVES, 4)."""
    coil: np.ndarray
    """Likewise, of the bias field, (COIL_WAVES, 4)."""


def make(
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int] = (144, 144, 28),
    spacing_mm: tuple[float, float, float] = (1.8, 1.8, 5.2),
) -> Phantom:
    """Make one case; anatomy, position, obliqueness, coil and noise change from call to call.

    Args:
      rng: the only source of chance.
      shape: voxels along left, down and back.
      spacing_mm: likewise. The field of view follows from both, the anatomy does not.

    Returns:
      The image (int16, slightly oblique, axis codes L I P) and the femur mask.

    Raises:
      ValueError: a size below one voxel, or a spacing that is not above 0.

    Example:
      >>> phantom = make(np.random.default_rng(0), shape=(36, 36, 7), spacing_mm=(7.2, 7.2, 20.8))
      >>> phantom.image.shape, phantom.mask.dtype
      ((36, 36, 7), dtype('bool'))
    """
    if min(shape) < 1 or min(spacing_mm) <= 0:
        raise ValueError(f"expected sizes of at least 1 and spacings above 0. Received: {shape=}, {spacing_mm=}")
    anatomy = draw_anatomy(rng)
    affine = _draw_affine(rng, shape, spacing_mm)
    clean, mask = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    for k in range(shape[2]):
        clean[:, :, k], mask[:, :, k] = _render_slice(anatomy, affine, shape, k)
    return Phantom(Volume(_scan(clean, rng), affine), mask)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one patient."""
    size = rng.uniform(0.85, 0.97)
    bladder = (rng.uniform(-8, 8), rng.uniform(8, 22), rng.uniform(8, 20))
    bowel = (rng.uniform(-18, 18), rng.uniform(-15, 0), rng.uniform(38, 50))
    return Anatomy(
        hips=(_draw_hip(rng, -1, size), _draw_hip(rng, 1, size)),
        size=size,
        organs=(solids.Ellipsoid(bladder, (25, 22, 15)), solids.Ellipsoid(bowel, (15, 12, 12))),
        width_mm=size * rng.uniform(126, 138),
        fat_mm=rng.uniform(8, 16),
        marrow=MARROW * rng.uniform(0.95, 1.06),
        texture=solids.draw_waves(rng, TEXTURE_WAVES, shortest_mm=12, longest_mm=45),
        coil=solids.draw_waves(rng, COIL_WAVES, shortest_mm=350, longest_mm=800),
    )


def femur_distance_mm(hip: Hip, points: np.ndarray) -> np.ndarray:
    """Return the signed distance of points (3, ...) to the surface of the femur, negative inside."""
    return solids.union(hip.femur, points, blend_mm=5)


def pelvis_distance_mm(hip: Hip, points: np.ndarray) -> np.ndarray:
    """Return the signed distance of points (3, ...) to the pelvic bone, negative inside.

    The socket is a ball around the head, and open towards the neck.
    """
    bone = solids.union(hip.pelvis, points, blend_mm=6)
    offset = points - solids.column(hip.frame.origin, points)
    away = solids.length(offset)
    towards_neck = solids.dot(np.array([0.66 * hip.frame.side, 0.10, -0.74]), offset)
    mouth = np.maximum(0.35 * hip.head_mm - towards_neck, away - 2.2 * hip.head_mm)
    return np.asarray(np.maximum(bone, -np.minimum(away - hip.head_mm - hip.joint_mm, mouth)))


def _draw_hip(rng: np.random.Generator, side: int, size: float) -> Hip:
    origin = (side * size * rng.uniform(60, 65), rng.uniform(-3, 3), rng.uniform(-3, 3))
    frame = solids.Frame(origin, side, size * rng.uniform(0.97, 1.03))
    neck = _draw_neck(rng)
    head_mm = rng.uniform(20, 22.5)
    return Hip(
        frame=frame,
        head_mm=frame.size * head_mm,
        joint_mm=rng.uniform(3.0, 4.2),
        shaft_top_z=frame.at(*neck)[2] - 5,
        femur=(frame.ellipsoid((0, 0, 0), (head_mm, head_mm, head_mm)), *_draw_femur(rng, frame, neck)),
        pelvis=_pelvis(frame),
    )


def _draw_neck(rng: np.random.Generator) -> solids.Point:
    """Draw the offset from the head to the foot of the neck, by neck-shaft angle, anteversion and length."""
    angle, anteversion = np.radians(rng.uniform(122, 136)), np.radians(rng.uniform(5, 20))
    length = rng.uniform(42, 47)
    flat = length * np.sin(angle)
    return (float(flat * np.cos(anteversion)), float(-flat * np.sin(anteversion)), float(length * np.cos(angle)))


def _draw_femur(rng: np.random.Generator, frame: solids.Frame, neck: solids.Point) -> tuple[solids.Solid, ...]:
    """Draw neck, greater and lesser trochanter and shaft, which runs on for 400 mm."""
    x, y, z = neck
    shaft_mm, medial, bow = rng.uniform(12.5, 14.5), rng.uniform(3, 10), rng.uniform(-2, 6)
    middle = (x + 2 - medial, y + bow, z - 65)
    end = (x + 2 - 4 * medial, y + 2 * bow, z - 400)
    return (
        frame.cone((0, 0, 0), neck, rng.uniform(11, 13), rng.uniform(14, 16.5)),
        frame.ellipsoid((x + 7, y - 4, z + rng.uniform(6, 11)), (12, 15, rng.uniform(17, 21))),
        frame.ellipsoid((x - 13, y - 9, z - 30), (8, 8, 10)),
        frame.cone((x + 2, y, z - 4), middle, rng.uniform(17, 19), shaft_mm),
        frame.cone(middle, end, shaft_mm, shaft_mm),
    )


def _pelvis(frame: solids.Frame) -> tuple[solids.Solid, ...]:
    """Return the walls of the acetabulum, ilium (column and wing), pubis, ischium and its ramus."""
    return (
        frame.ellipsoid((-2, -2, 12), (31, 32, 32)),
        frame.cone((-3, -4, 32), (-8, -26, 104), 13, 9),
        frame.ellipsoid((3, -10, 76), (10, 36, 48)),
        frame.cone((-16, 12, -6), (-56, 36, -30), 10, 8),
        frame.cone((-12, -14, -12), (-20, -28, -58), 13, 14),
        frame.cone((-20, -24, -62), (-54, 30, -38), 8, 6),
    )


def _body_distance_mm(anatomy: Anatomy, points: np.ndarray) -> np.ndarray:
    """Return the distance to the skin, about: a superellipse, narrower towards the waist and the knees."""
    x, y, z = points
    width = anatomy.width_mm * (1 - 0.10 * np.clip((z - 10) / 110, 0, 1) ** 2 - 0.06 * np.clip(-(z + 40) / 90, 0, 1))
    depth = 0.72 * anatomy.width_mm
    return np.asarray((((np.abs(x) / width) ** 2.5 + (np.abs(y) / depth) ** 2.5) ** 0.4 - 1) * depth)


def _paint_soft_tissue(anatomy: Anatomy, points: np.ndarray, soft_mm: float) -> np.ndarray:
    """Return fat, muscle with its streaks of fat, the fat of pelvis and crotch, and organs, (...) float32."""
    size = anatomy.size
    skin = _body_distance_mm(anatomy, points)
    fibres = solids.wave_field(anatomy.texture * (1, 1, 0.3, 1), points)
    streaks = np.exp(-((fibres / 0.15) ** 2))
    signal = _over(np.zeros_like(skin), FAT * (1 + 0.05 * fibres), skin, soft_mm)
    signal = _over(signal, MUSCLE + 0.28 * streaks, skin + anatomy.fat_mm, soft_mm)
    cavity = solids.Ellipsoid((0, 4, 26 * size), (38 * size, 44, 46 * size)).distance_mm(points)
    crotch = solids.Ellipsoid((0, 0, -105 * size), (19, 90, 75 * size)).distance_mm(points)
    signal = _over(signal, FAT * (1 + 0.10 * fibres), np.minimum(cavity, crotch), soft_mm)
    return _over(signal, ORGAN, solids.union(anatomy.organs, points, blend_mm=4), soft_mm)


def _paint_bone(signal: np.ndarray, anatomy: Anatomy, points: np.ndarray, soft_mm: float) -> np.ndarray:
    """Return `signal` with sacrum, pelvis, joints and femurs, in this order, on top of it."""
    marrow = anatomy.marrow * (1 + 0.06 * solids.wave_field(anatomy.texture, points))
    size = anatomy.size
    sacrum = solids.Ellipsoid((0, -30 * size, 84 * size), (36 * size, 24 * size, 44 * size))
    pelvis = np.minimum.reduce([pelvis_distance_mm(hip, points) for hip in anatomy.hips])
    for shell in (sacrum.distance_mm(points), pelvis):
        signal = _over(_over(signal, CORTEX, shell, soft_mm), marrow, shell + 2.0, soft_mm)
    for hip in anatomy.hips:
        joint = solids.length(points - solids.column(hip.frame.origin, points)) - hip.head_mm - 0.6 * hip.joint_mm
        femur = femur_distance_mm(hip, points)
        cortex_mm = 1.6 + 3.4 * np.clip((hip.shaft_top_z - points[2]) / 60, 0, 1)
        signal = _over(_over(signal, CARTILAGE, joint, soft_mm), CORTEX, femur, soft_mm)
        signal = _over(signal, marrow, femur + cortex_mm, soft_mm)
    return signal


def _render_slice(
    anatomy: Anatomy, affine: np.ndarray, shape: tuple[int, int, int], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return brightness, averaged over the slice's thickness, and true mask of slice k, each (X, Y)."""
    depths = k + SLICE_SHARE * (np.arange(SUBSLICES) - SUBSLICES // 2) / SUBSLICES
    index = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), depths, indexing="ij"))  # (3, X, Y, sub)
    points = (np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3, None, None, None]).astype(np.float32)
    soft_mm = float(np.linalg.norm(affine[:3, 0]))
    signal = _paint_bone(_paint_soft_tissue(anatomy, points, soft_mm), anatomy, points, soft_mm)
    signal = signal * np.exp(0.18 * solids.wave_field(anatomy.coil, points))
    centres = points[..., SUBSLICES // 2]  # (3, X, Y)
    inside = [femur_distance_mm(hip, centres) <= 0 for hip in anatomy.hips]
    return signal.mean(axis=-1), np.logical_or(*inside)


def _scan(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return stored intensities, int16, with Rician noise: the magnitude of a complex signal with Gaussian noise."""
    sigma = rng.uniform(0.012, 0.028)
    real = clean + sigma * rng.standard_normal(clean.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(clean.shape, dtype=np.float32)
    return np.floor(FULL_SCALE * np.hypot(real, imaginary) + 0.5).astype(np.int16)


def _draw_affine(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Draw voxel index -> RAS mm: left, down, back, turned by up to 6 degrees, the hips a little below the middle."""
    turn = Rotation.from_euler("xyz", rng.uniform(-6, 6, 3), degrees=True).as_matrix()
    stack = np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]])  # columns: voxel axes L, I, P in RAS
    centre = rng.uniform((-5, -8, 4), (5, 8, 18))
    affine = np.eye(4)
    affine[:3, :3] = turn @ stack * np.asarray(spacing_mm)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def _over(below: np.ndarray, value: np.ndarray | float, distance_mm: np.ndarray, soft_mm: float) -> np.ndarray:
    """Return `below` with `value` painted where the distance is negative, over an edge `soft_mm` wide."""
    weight = np.clip(0.5 - distance_mm / soft_mm, 0, 1)
    return np.asarray(below + weight * (value - below))

"""Every setting of a study: its default, its range and where the value comes from.

The source is Hallyburton et al., ISMRM 2017, #3860. A value that it states is
marked "source"; a value that it leaves open, "our choice". Frozen, checked, saved as JSON.

A field that a file does not name has its default here: what was done before there was such a field, so that files of
earlier versions are read as what they are. What is done since is named by a plan (`data_prep.fitted`) or a preset.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from femur_tf.config_json import differences as differences
from femur_tf.config_json import from_dict as from_dict
from femur_tf.config_json import load as load
from femur_tf.config_json import to_dict as to_dict
from femur_tf.errors import require
from femur_tf.patch_config import PLANES as PLANES
from femur_tf.patch_config import PatchConfig as PatchConfig
from femur_tf.patch_config import PlaneChoice as PlaneChoice
from femur_tf.train_config import AugmentConfig as AugmentConfig
from femur_tf.train_config import TrainConfig as TrainConfig


@dataclasses.dataclass(frozen=True)
class NormalisationConfig:
    """How a volume's intensities become the uint8 of the working grid."""

    lower_percentile: float = 0.5
    """Of all voxels; becomes 0 (our choice)."""
    upper_percentile: float = 99.5
    """Of the foreground, the voxels above the volume's mean; becomes 255 (our choice)."""
    upper_medians: float | None = None
    """255 lies at most so many times as far above what becomes 0 as the foreground's median; None: however far. The
    plan takes the most that one of its cases has, so that none is changed: a bright organ, or the near side of a
    coil, then leaves tissue its grey values in a scan that has one (our choice)."""
    n4: bool = False
    """Correct the bias field first (N4, SimpleITK); about 10 to 20 s a hip case (our choice: off)."""

    def __post_init__(self) -> None:
        require(0 <= self.lower_percentile < 50, self, "lower_percentile", "a percentile in [0, 50)")
        require(50 < self.upper_percentile <= 100, self, "upper_percentile", "a percentile in (50, 100]")
        require(self.upper_medians is None or self.upper_medians >= 1, self, "upper_medians", "at least 1, or null")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Which voxels of a case become examples (our choice throughout)."""

    per_case: int = 48_000
    """Examples drawn from each case, without replacement."""
    share_bone: float = 0.35
    """Share of the examples inside the femur."""
    share_near: float = 0.35
    """Share outside the femur and near it; the rest is far background."""
    near_volume: float | None = None
    """Near are the background voxels that lie nearest to the femur, as many as this times the femur's own: a voxel just
    outside is then drawn half as often as one inside, be it of a hip's femur (10 mm) or a tube of a few voxels (2 mm).
    None: all within `near_mm`."""
    near_mm: float = 12.0
    """Distance from the femur, inclusive, beyond which no background counts as near."""
    seed: int = 2017

    def __post_init__(self) -> None:
        require(self.per_case >= 1, self, "per_case", "at least 1 example")
        require(0 < self.share_bone < 1, self, "share_bone", "a share in (0, 1)")
        require(0 <= self.share_near < 1, self, "share_near", "a share in [0, 1)")
        require(self.share_bone + self.share_near <= 1, self, "share_near", "share_bone + share_near of at most 1")
        some = self.near_volume is None or 0 < self.near_volume < 1e9
        require(some, self, "near_volume", "a number in (0, 1e9), or null")
        require(0 < self.near_mm < 1e6, self, "near_mm", "a distance in (0, 1e6) mm")
        require(self.seed >= 0, self, "seed", "a whole number of at least 0")


@dataclasses.dataclass(frozen=True)
class VariationConfig:
    """Copies of a training case in other poses, sizes and intensities, which examples are drawn from (our choice)."""

    copies: int = 12
    """Volumes a training case is drawn from; the first is the scan itself. 1: the scan alone."""
    rotation_degrees: float = 10.0
    """Rotate within the finest plane by an angle in [-v, v]."""
    tilt_degrees: float = 4.0
    """Rotate within each other plane."""
    scale: float = 0.12
    """Stretch each axis by a factor in [1 / (1 + v), 1 + v]."""
    shift: float = 0.0
    """Shift along each axis by a share of the volume's length in [-v, v]."""
    warp: float = 0.0
    """Bend by smooth displacements of at most this share of the volume's length along each axis."""
    gamma: float = 0.8
    """Raise grey values, of [0, 1], to a power in [1 / (1 + v), 1 + v]."""
    tone: float = 0.0
    """Pass grey values through rising curves of four segments, in one place others than in the next; slopes are factors
    in [1 / (1 + v), 1 + v], scaled to keep black and white."""
    bias: float = 0.5
    """Multiply by a smooth field of at most exp(v)."""
    blur_mm: float = 0.0
    """Blur with a Gaussian of a standard deviation in [0, v]."""
    noise: float = 15.0
    """Add Gaussian noise of a standard deviation in [0, v], of 255 grey values."""
    cut_mm: float = 0.0
    """End every second copy, along the axis of the coarsest spacing, at a distance in [0, v] from the femur on either
    side: stacks have few slices more than the bone, and a patch sees beyond them. 0: none ends so."""

    def __post_init__(self) -> None:
        require(self.copies >= 1, self, "copies", "at least 1")
        require(0 <= self.rotation_degrees <= 45, self, "rotation_degrees", "an angle in [0, 45] degrees")
        require(0 <= self.tilt_degrees <= 45, self, "tilt_degrees", "an angle in [0, 45] degrees")
        for name in ("scale", "gamma", "bias", "shift"):
            require(0 <= getattr(self, name) < 1, self, name, "a share in [0, 1)")
        require(0 <= self.tone <= 9, self, "tone", "a number in [0, 9]")
        require(0 <= self.warp <= 0.06, self, "warp", "a share in [0, 0.06]: beyond, a volume may fold onto itself")
        require(0 <= self.blur_mm <= 10, self, "blur_mm", "a length in [0, 10] mm")
        require(0 <= self.noise <= 50, self, "noise", "grey values in [0, 50]")
        require(0 <= self.cut_mm <= 1000, self, "cut_mm", "a distance in [0, 1000] mm")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The Sequential network: blocks of (Conv, MaxPool, BatchNorm, ReLU), Flatten, Dense layers, Dense 1."""

    filters: tuple[int, ...] = (16, 64, 128)
    """Filters of each convolution, per plane and scale with late fusion (our choice)."""
    kernel: int = 3
    """Kernel size (source: 3 x 3)."""
    pool: int = 2
    """Max-pooling window and stride (source: max pooling; the size is our choice)."""
    dense: tuple[int, ...] = (48,)
    """Units of each hidden Dense layer (our choice)."""
    batch_norm: bool = False
    """Batch normalisation (Ioffe and Szegedy 2015) after each pooling; at segmentation it is part of the convolution
    (our choice; the source has none)."""
    centre: int = 0
    """Side of a window of the first convolution's maps about the patch's centre that the first Dense layer sees beside
    what is pooled, without dropout; 0: none. Pooling blurs where a surface runs, to a voxel (our choice; after the skip
    connections of Ronneberger et al. 2015)."""
    fusion: Literal["late", "early"] = "late"
    """`late` keeps planes and scales apart up to the Dense layers, and can be evaluated densely; `early` mixes them in
    the first convolution (our choice)."""
    dropout_conv: float = 0.0
    """Dropout after each convolution block (source: 0.5)."""
    dropout_dense: float = 0.5
    """Dropout before each Dense layer (source: 0.5)."""
    l2: float = 1e-5
    """L2 penalty on kernels (source: L2 is used; the value is our choice)."""
    bias: float = 0.10
    """Initial value of each bias (source: 0.10). Kernels start from Glorot uniform (source: Xavier)."""

    def __post_init__(self) -> None:
        require(min(self.filters, default=0) >= 1, self, "filters", "one width or more, each at least 1")
        require(self.kernel >= 1, self, "kernel", "at least 1")
        require(self.pool >= 1, self, "pool", "at least 1")
        require(all(d >= 1 for d in self.dense), self, "dense", "widths of at least 1")
        odd = self.centre % 2 == 1
        require(self.centre == 0 or (self.centre > 0 and odd), self, "centre", "0, or an odd number of samples")
        require(self.fusion in ("late", "early"), self, "fusion", "'late' or 'early'")
        require(0 <= self.dropout_conv < 1, self, "dropout_conv", "a rate in [0, 1)")
        require(0 <= self.dropout_dense < 1, self, "dropout_dense", "a rate in [0, 1)")
        require(self.l2 >= 0, self, "l2", "at least 0")


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the post-processing recipe, after the cut-off.

    `opening`: value = radius in mm; `small_clusters`: remove clusters smaller than value mm3; `largest`: keep the
    value largest components; `fill_holes`: fill cavities closed in 3-D of at most value mm3; `fill_planes`: fill
    holes closed within a slice of the plane that is sampled finest, of at most value mm2.
    """

    name: Literal["opening", "small_clusters", "largest", "fill_holes", "fill_planes"]
    value: float

    def __post_init__(self) -> None:
        names = ("opening", "small_clusters", "largest", "fill_holes", "fill_planes")
        require(self.name in names, self, "name", f"one of {', '.join(names)}")
        require(self.value >= 0, self, "value", "at least 0")


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """How a probability map becomes a mask: a cut-off, then the steps in their order."""

    cutoff: float = 0.5
    """A voxel is bone where its probability is at least the cut-off (source: .9266, from the test ROC)."""
    steps: tuple[Step, ...] = (Step("opening", 1.0), Step("largest", 2), Step("fill_holes", 1e5))

    def __post_init__(self) -> None:
        require(0 <= self.cutoff <= 1, self, "cutoff", "a probability in [0, 1]")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the records hold: the patch rule, the intensities and the sampling. Fixed by the plan."""

    patch: PatchConfig = dataclasses.field(default_factory=lambda: PatchConfig(scales_mm=(0.0, 3.6)))
    normalisation: NormalisationConfig = NormalisationConfig()
    sampling: SamplingConfig = SamplingConfig()
    variation: VariationConfig = VariationConfig()
    sided: bool = False
    """The structure lies on one side of the patient, the same in all cases: patches are not mirrored in training."""

    def __post_init__(self) -> None:
        copies = self.variation.copies
        require(
            self.sampling.per_case >= copies, self.sampling, "per_case", f"an example of each of the {copies} copies"
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All that a run was made with: what `runs/NAME/config.json` holds."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    format_version: int = 1


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """How a probability map is computed; exact unless `fast`."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions; bfloat16 is about twice as fast where the processor has it, and coarser."""
    max_memory: int = 2000
    """Peak resident memory of the process, in MB (10^6 bytes); less where the machine or the container has less."""
    fast: bool = False
    """Evaluate every eighth voxel or so first, then only where these leave doubt; the rest keeps the first values."""
    body_only: bool = False
    """Leave out planes at the volume's sides that show no body; they get probability 0. Not with `fast`."""
    fast_threshold: float = 0.13
    """With `fast`: a first probability at or above it, or a neighbour's, leaves doubt."""

    def __post_init__(self) -> None:
        require(self.precision in ("float32", "bfloat16"), self, "precision", "'float32' or 'bfloat16'")
        require(self.max_memory >= 1, self, "max_memory", "at least 1 MB")
        require(0 < self.fast_threshold < 1, self, "fast_threshold", "a probability in (0, 1)")
        require(not (self.fast and self.body_only), self, "body_only", "False with `fast`, which leaves out more")

    @property
    def of_map(self) -> PredictConfig:
        """What of these settings a map depends on: the memory limit, at its default here, changes none."""
        return dataclasses.replace(self, max_memory=PredictConfig.max_memory)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named pair of network and training settings, with the patch scales and planes they read."""

    model: ModelConfig
    train: TrainConfig
    scales_mm: tuple[float, ...]
    planes: tuple[PlaneChoice, ...] = ()

    def patch(self, held: PatchConfig) -> PatchConfig:
        """Return which of a plan's patches the preset reads.

        Those of its own scales and planes; where the plan lacks one of the scales, those of all the plan's scales. A
        scale that the preset does not know has the planes of the preset's scale in its place, or of the last one.
        """
        if set(self.scales_mm) <= set(held.scales_mm):
            return dataclasses.replace(held, scales_mm=self.scales_mm, planes=self.planes)
        own = dict(zip(self.scales_mm, self.planes, strict=False))  # a preset without planes reads all
        in_turn = (*self.planes, *self.planes[-1:] * len(held.scales_mm))
        planes = tuple(own.get(scale, other) for scale, other in zip(held.scales_mm, in_turn, strict=False))
        return dataclasses.replace(held, planes=planes)


PRESETS = {
    "paper": Preset(
        ModelConfig(filters=(24, 48, 96), dense=(96,), dropout_conv=0.5, dropout_dense=0.5, l2=5e-4),
        TrainConfig(
            optimizer="sgd",
            learning_rate=1e-4,
            momentum=0.9,
            schedule="constant",
            augment=AugmentConfig(False, 0, 0, 0),
        ),
        scales_mm=(0.0,),
    ),
    "default": Preset(
        ModelConfig(dense=(64,), batch_norm=True, centre=5),
        TrainConfig(batch=64),
        scales_mm=(0.0, 3.6),
        planes=("finest", "all"),
    ),
}
"""`paper` is Table 1 of the source, with our widths, momentum, L2 and late fusion where it is silent; `default` is the
best measured (docs/results.md, docs/experiments.md)."""

"""How a network is trained: optimizer, schedule, loss, augmentation; `femur_tf.config` says what "source" means."""

from __future__ import annotations

import dataclasses
from typing import Literal

from femur_tf.errors import require


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training patch, made inside the tf.data graph; 0 or False switches one off (our choice)."""

    flip: bool = True
    """Mirror left-right, in one example of two; never where `data.sided`."""
    intensity_scale: float = 0.1
    """Multiply grey values by a factor in [1 - v, 1 + v]."""
    intensity_shift: float = 0.05
    """Add a share in [-v, v] of the full range of 255."""
    rotation_degrees: float = 0.0
    """Rotate each plane about its centre by an angle in [-v, v]."""

    def __post_init__(self) -> None:
        require(0 <= self.intensity_scale < 1, self, "intensity_scale", "a share in [0, 1)")
        require(0 <= self.intensity_shift < 1, self, "intensity_shift", "a share in [0, 1)")
        require(0 <= self.rotation_degrees <= 45, self, "rotation_degrees", "an angle in [0, 45] degrees")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How the network is trained."""

    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """(source: SGD with momentum)"""
    learning_rate: float = 2e-3
    """(source: 1e-4)"""
    momentum: float = 0.9
    """Of SGD; Adam's beta_1 otherwise (our choice)."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """`cosine` falls to a hundredth of the learning rate by the end of the run (source: constant)."""
    batch: int = 256
    """Examples a step (source: 256)."""
    epochs: int = 62
    """Passes over the records (source: 62), or over parts of them."""
    epoch_examples: int | None = None
    """Examples an epoch, which goes on in the shuffled records where the one before ended; None: all of them, in a run
    of minutes at most 15,000 a minute and 600,000."""
    validation_examples: int | None = None
    """Examples to validate with, always the same, drawn evenly from the validation cases; None: all of them, in a run
    of minutes at most 3,000 a minute and 120,000."""
    bone_share: float | None = None
    """Share of femur in each batch, whose examples are drawn anew for it; None: as in the records."""
    minutes: float | None = None
    """Training time to use instead of epochs: minutes on the GPU, or CPU minutes over the number of cores."""
    loss: Literal["binary_crossentropy", "weighted", "focal"] = "binary_crossentropy"
    """Keras's own losses; `weighted` multiplies bone's term by `bone_weight` (source: log-loss)."""
    bone_weight: float = 1.0
    """Weight of a bone example with the `weighted` loss."""
    focal_gamma: float = 2.0
    """Exponent of the `focal` loss (Lin et al. 2017), at least 1: below, its slope is infinite where the network is
    sure and right."""
    patience: int = 8
    """Epochs without a higher validation AUC after which training stops (our choice)."""
    mixed_precision: bool = False
    """Compute with float32 weights in float16 on a GPU, in bfloat16 on a CPU; worth it where the processor has it."""
    seed: int = 2017
    mined: tuple[str, ...] = ()
    """Mined sets whose examples are read beside the records (data_prep.mine)."""
    start: str | None = None
    """Run of the same study whose weights training starts from; none: Glorot uniform."""
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < 10, self, "learning_rate", "a rate in (0, 10)")
        require(0 <= self.momentum < 1, self, "momentum", "a share in [0, 1)")
        require(self.batch >= 1, self, "batch", "at least 1")
        require(self.epochs >= 1, self, "epochs", "at least 1")
        for name in ("epoch_examples", "validation_examples"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, self, name, "at least 1 example")
        require(self.bone_share is None or 0 < self.bone_share < 1, self, "bone_share", "a share in (0, 1)")
        require(self.minutes is None or 0 < self.minutes < 1e6, self, "minutes", "a time in (0, 1e6) minutes")
        require(self.bone_weight > 0, self, "bone_weight", "a weight above 0")
        require(self.focal_gamma >= 1, self, "focal_gamma", "at least 1")
        require(self.patience >= 1, self, "patience", "at least 1 epoch")
        require(0 <= self.seed < 2**32, self, "seed", "a whole number in [0, 2^32)")

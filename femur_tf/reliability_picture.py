"""The reliability diagram as PNG: how often voxels of a probability are bone, and how many voxels there are.

matplotlib is imported when the picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

from femur_tf import pictures
from femur_tf.calibration import Reliability, expected_error

COLOURS = ("#d9480f", "#1f5fbf", "#2b8a3e", "#862e9c")


def reliability_png(tables: Mapping[str, Reliability]) -> bytes:
    """Draw reliability tables over each other, and below them the voxels of each bin.

    Args:
      tables: by name, such as before and after calibration; at most four.

    Returns:
      The bytes of a PNG file.

    Raises:
      ValueError: no table, or more than four.
    """
    if not 0 < len(tables) <= len(COLOURS):
        raise ValueError(f"expected one to {len(COLOURS)} tables. Received: {len(tables)}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color="#9aa4b2", label="as it should be")
    for (name, table), colour in zip(tables.items(), COLOURS, strict=False):
        label = f"{name}, expected error {expected_error(table):.4f}"
        upper.plot(table.probability, table.bone, "o-", color=colour, label=label)
        lower.plot(table.probability, table.voxels, "o-", color=colour)
    upper.set(ylabel="share of bone", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    lower.set(xlabel="mean probability", ylabel="voxels", yscale="log")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.legend(loc="upper left")
    return pictures.png(figure)

"""One HTML page about a run or a demo: tables, the ROC curve, pictures of cases.

The page is a single file: pictures are PNG inside it, there is no script and nothing
is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import html
import math
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from femur_tf import files, metrics
from femur_tf.pictures import overlay_png, roc_png, roc_point
from femur_tf.volume import Volume

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d5dae1; text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.mean { font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #4a5566; }
pre { background: #f2f4f7; padding: .7rem 1rem; overflow-x: auto; }
"""


class Page:
    """A page that grows from top to bottom and is written at the end."""

    def __init__(self, title: str = "") -> None:
        """Start a page.

        Args:
          title: its heading; one that becomes part of another page needs none.
        """
        self._title = title
        self._parts: list[str] = []

    def extend(self, other: Page) -> None:
        """Add all that stands on another page."""
        self._parts += other._parts

    def add_heading(self, text: str) -> None:
        """Add a heading of the second order."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def add_text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def add_commands(self, lines: Sequence[str]) -> None:
        """Add lines to type, in a block of their own."""
        self._parts.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")

    def add_table(self, header: Sequence[str], rows: Iterable[Sequence[object]], *, mean: bool = True) -> None:
        """Add a table, with a last row of mean +- standard deviation under each column of numbers.

        Args:
          header: a name for each column, with its unit.
          rows: cells; floats are shown with three decimals. NaN, an undefined score, does not count in the mean.
          mean: whether to add the last row.
        """
        body = [list(row) for row in rows]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        lines = [_row([_cell(value) for value in row]) for row in body]
        if body and mean:
            lines.append(_row(_mean_cells(body), kind="mean"))
        table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        self._parts.append(f'<div class="wide"><table>{table}</table></div>')

    def add_roc(self, roc: metrics.Roc, auc: float, cutoff: float) -> None:
        """Add a ROC curve with the point of the cut-off on it.

        Args:
          roc: the curve.
          auc: the area under it.
          cutoff: a voxel is bone where its probability is at least this.
        """
        false_positive, true_positive = roc_point(roc, cutoff)
        caption = (
            f"ROC over all voxels: AUC {auc:.4f}; at cut-off {cutoff:.4f} sensitivity {true_positive:.3f}, "
            f"specificity {1 - false_positive:.3f}, before the steps that follow the cut-off."
        )
        self.add_picture(roc_png(roc, auc, cutoff), caption)

    def add_case(self, name: str, image: Volume, mask: np.ndarray, reference: np.ndarray | None) -> None:
        """Add pictures of a case.

        Args:
          name: of the case.
          image: (X, Y, Z), any axis order.
          mask: bool, on the image's grid.
          reference: likewise; None where there is none.
        """
        cm3 = float(np.prod(image.spacing_mm)) / 1000
        caption = f"{name}: mask {mask.sum() * cm3:.1f} cm3"
        if reference is not None:
            caption += f", reference {reference.sum() * cm3:.1f} cm3, Dice {metrics.dice(mask, reference):.3f}"
        self.add_heading(name)
        self.add_picture(overlay_png(image, mask, reference), caption)

    def add_picture(self, png: bytes, caption: str) -> None:
        """Add a PNG picture with its caption, which is its description too."""
        data, text = base64.b64encode(png).decode(), html.escape(caption)
        image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
        self._parts.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")

    def write(self, path: Path) -> None:
        """Write the page to `path`, whole."""
        title = html.escape(self._title)
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        text = (
            f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{title}</title><style>{STYLE}</style></head>\n'
            f"<body>\n<h1>{title}</h1>\n" + "\n".join(self._parts) + "\n</body></html>\n"
        )
        files.write_text(path, text.encode("ascii", "xmlcharrefreplace").decode())  # the same in any locale


def _row(cells: Sequence[str], kind: str = "") -> str:
    """Return a table row of texts that are not escaped yet."""
    mark = f' class="{kind}"' if kind else ""
    return f"<tr{mark}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"


def _cell(value: object) -> str:
    """Return a cell as text; floats have three decimals."""
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


def _mean_cells(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return mean +- standard deviation under each column of numbers, a label under a first column of names."""
    cells = [_mean_cell(column) for column in zip(*rows, strict=True)]
    return ["mean +- sd" if index == 0 and not cell else cell for index, cell in enumerate(cells)]


def _mean_cell(column: Sequence[object]) -> str:
    """Return mean +- standard deviation of the finite values of a column; nothing unless all its cells are numbers."""
    values = [float(v) for v in column if isinstance(v, numbers.Real) and not isinstance(v, bool)]
    if len(values) < len(column):
        return ""
    known = np.array([v for v in values if math.isfinite(v)])
    return f"{known.mean():.3f} +- {known.std():.3f}" if known.size else "nan"  # no case has this score

"""Which model made a mask: noted in the mask's header, and beside what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from femur_tf import __version__

SHOWN = 12
"""Digits of a digest that tell models apart."""
ROOM = 79
"""Characters of NIfTI's field `descrip`, without its end."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """A model and how its maps are computed."""

    model: str
    """Name of the saved model or of the run."""
    version: str
    """Of the saved model; "" of a run."""
    digest: str
    """Of all that a mask depends on but the options: preparation, network, recipe; hexadecimal."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the prediction; none where a server computes the maps."""

    @property
    def text(self) -> str:
        """What a mask's header says: package, model and version, and the start of the digest; at most `ROOM`."""
        package, digest = f"femur_tf {__version__}, ", f", {self.digest[:SHOWN]}"
        return package + f"{self.model} {self.version}".rstrip()[: ROOM - len(package) - len(digest)] + digest

    def to_dict(self) -> dict[str, Any]:
        """Return what a report says, as plain JSON types."""
        return {"femur_tf": __version__, **dataclasses.asdict(self)}

    def made(self, text: str) -> bool:
        """Tell whether a header's text is that of the same model.

        Args:
          text: as `text` gives it, or whatever another program writes there.
        """
        return text.endswith(self.digest[:SHOWN])


def told(text: str) -> bool:
    """Tell whether a header's text says which model made a mask: masks that were edited may have lost it."""
    return text.startswith("femur_tf ")

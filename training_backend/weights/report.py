"""What became of every tensor when weights were taken over, as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from training_backend.errors import WeightsError

REQUIRED = 0.9
"""Share of an encoder's tensors that must be found in a file before it counts as weights for that encoder."""

_SHOWN = 6


@dataclass(frozen=True)
class ImportReport:
    """Names are those of the published checkpoints.

    Attributes:
        source: file, folder or zoo entry the weights came from.
        family: whose layout the file has.
        kind: "pretrain", "encoder" or "finetune".
        matched: taken over, resized ones included.
        resized: taken over in another shape: (name, shape in the file, shape in the network).
        missing: in the network but not in the file; they keep their initial values.
        mismatched: in both but in shapes that cannot be reconciled; they keep their initial values.
        dropped: in the file, known, and not part of this network (a decoder, another head).
        unexpected: in the file and unknown to its family.
        licence: of the weights, as far as it is known.
        encoder: tensors of the network's encoder, `encoder_matched` of which were taken over.
        notes: sentences on what was assumed, since the file does not tell it.
    """

    source: str
    family: str
    kind: str
    matched: tuple[str, ...]
    resized: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    dropped: tuple[str, ...]
    unexpected: tuple[str, ...]
    encoder: int
    encoder_matched: int
    licence: str = ""
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Part of the encoder's tensors that were found, 0 to 1; 1 for a network without one that others fit."""
        return self.encoder_matched / self.encoder if self.encoder else float(bool(self.matched))

    def checked(self, essential: tuple[str, ...] = (), reason: str = "") -> ImportReport:
        """This report, or a `WeightsError` if too little of the encoder, or nothing of an essential part, was found.

        Args:
            essential: names without which an encoder is worthless however much else matches.
            reason: why, where it is known.
        """
        lacking = [name for name in essential if name not in self.matched]
        if self.share >= REQUIRED and not lacking:
            return self
        found = f"{self.encoder_matched} of {self.encoder} encoder tensors ({self.share:.0%}) are in {self.source}"
        verb = "is" if len(lacking) == 1 else "are"
        needed = f"{', '.join(lacking)} {verb} not among them" if lacking else f"{REQUIRED:.0%} are needed"
        raise WeightsError(f"Only {found}; {needed}.", reason or "Choose weights of the same network.")

    def __str__(self) -> str:
        """Text table: one line per fate, the first names of each."""
        lines = [
            f"{self.source} ({self.family}, {self.kind}): {self.encoder_matched} of {self.encoder} encoder tensors"
        ]
        lines[0] += f" matched ({self.share:.1%})"
        for fate in ("matched", "resized", "missing", "mismatched", "dropped", "unexpected"):
            entries = getattr(self, fate)
            names = [entry if isinstance(entry, str) else f"{entry[0]} {entry[1]} to {entry[2]}" for entry in entries]
            more = ", ..." if len(names) > _SHOWN else ""
            shown = "" if fate == "matched" else ", ".join(names[:_SHOWN]) + more
            lines.append(f"  {fate:10} {len(entries):5}  {shown}".rstrip())
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the share."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {**values, "share": self.share}

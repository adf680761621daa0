"""What to do when a loss or a gradient is not finite: skip, then roll back, then stop and say which cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from training_backend.errors import TrainingDiverged

WINDOW = 100
TOLERATED = 3
"""Skipped steps tolerated within `WINDOW` steps, and roll-backs tolerated within a run."""

Verdict = Literal["skip", "roll back"]


@dataclass
class Guard:
    """Memory of a run's non-finite steps; part of the checkpoint.

    Attributes:
        skipped: steps within the last `WINDOW` that were skipped.
        rollbacks: returns to an earlier checkpoint so far.
        lr_factor: what the learning rate is multiplied by; halved at every roll-back.
        suspects: case id to the number of skipped steps that it was part of.
    """

    skipped: list[int] = field(default_factory=list)
    rollbacks: int = 0
    lr_factor: float = 1.0
    suspects: dict[str, int] = field(default_factory=dict)

    def bad(self, step: int, cases: Sequence[str]) -> Verdict:
        """Record a non-finite step with the views' cases; answers what to do.

        Raises:
            TrainingDiverged: the roll-backs are used up.
        """
        self.skipped = [old for old in self.skipped if old > step - WINDOW] + [step]
        for case in dict.fromkeys(cases):
            self.suspects[case] = self.suspects.get(case, 0) + 1
        if len(self.skipped) <= TOLERATED:
            return "skip"
        if self.rollbacks >= TOLERATED:
            worst = sorted(self.suspects, key=lambda case: -self.suspects[case])[:10]
            raise TrainingDiverged(
                f"The loss was not a finite number in {len(self.skipped)} of {WINDOW} steps, after {self.rollbacks} "
                f"returns to an earlier checkpoint, each with half the learning rate.",
                f"Look at these cases first: {', '.join(worst)}; then lower optim.lr.",
            )
        return "roll back"

    def good(self, step: int) -> None:
        """Forget skipped steps that left the window."""
        if self.skipped and self.skipped[0] <= step - WINDOW:
            self.skipped = [old for old in self.skipped if old > step - WINDOW]

    def rolled_back(self) -> None:
        """Begin again with half the learning rate."""
        self.rollbacks += 1
        self.lr_factor *= 0.5
        self.skipped = []

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

"""How scans are put into pairs, for tasks that look at two of them at once."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from training_backend.config.model import ui
from training_backend.config.run import TaskConfig


class PairTaskConfig(TaskConfig):
    """Settings of a task whose network sees a moving scan and a fixed one."""

    scans: ClassVar[int] = 2

    atlas: str = ""
    """Id of the case that is moved onto every other one (atlas to subject); empty pairs every case with another, drawn
    anew each epoch (subject to subject)."""
    symmetric: bool = True
    """Learn every pair in both directions."""
    align: Literal["boxes", "world"] = "boxes"
    """How two scans lie over each other before they are registered. boxes: by the middle of their stored boxes, each
    fitted into the view. world: as their files say, for scans of one patient or of one atlas space."""
    use_labels: bool = Field(True, json_schema_extra=ui(label="Use label maps"))
    """Learn from label maps too, and score by their overlap; off needs none."""

"""What a run reads: the dataset, the views cut from it, their intensities and their augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from training_backend.config.model import ConfigModel, ui


class IntensityConfig(ConfigModel):
    """How stored values become network input; saved with the weights, so prediction cannot differ."""

    profile: Literal["auto", "window", "percentile", "scaled", "standard", "zscore", "zscore_nonzero", "identity"] = (
        "auto"
    )
    """auto: scaled for pictures, window for CT, unchanged when already within [0, 1], else percentile. window: [low,
    high] to [0, 1]. scaled: divided by high, within [-1, 1]; pictures by 255 or 65535 when high is empty.
    percentile: [low, high] per cent of the volume's body to [0, 1]. zscore: zero mean, unit variance over the body.
    zscore_nonzero: the same over all voxels but zeros, which stay 0, as VoCo's authors see MR. standard: cut at low and
    high, then zero mean and unit variance by mean and std of the data set. identity: as stored."""
    low: float | None = None
    """Lower bound: HU for window (-1200 as TANGERINE when empty), per cent for percentile (0.5 when empty)."""
    high: float | None = None
    """Upper bound: HU for window (800 when empty), per cent for percentile (99.5 when empty); divisor for scaled."""
    mean: float | None = Field(None, json_schema_extra=ui(advanced=True))
    """Mean of the data set, for standard."""
    std: float | None = Field(None, gt=0, json_schema_extra=ui(advanced=True))
    """Standard deviation of the data set, for standard."""


class AugmentConfig(ConfigModel):
    """Random changes of a training view; probabilities per view, drawn from (seed, epoch, case, view)."""

    flip: tuple[float, float, float] = (0.0, 0.2, 0.2)
    """Probability of a flip along (z, y, x); TANGERINE flips y and x with 0.2."""
    flipped: float = Field(1.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Share of the views that may be flipped at all, the others lie as they are."""
    rotate: float = Field(0.0, ge=0, le=1)
    """Probability of a rotation by up to `rotate_deg` about each axis."""
    rotate_deg: float = Field(15.0, ge=0, le=180, json_schema_extra=ui(unit="°", advanced=True))
    """Largest rotation angle."""
    scale: float = Field(0.0, ge=0, le=1)
    """Probability of an isotropic zoom by a factor within 1 ± `scale_range`."""
    scale_range: float = Field(0.2, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Half width of the zoom range."""
    noise: float = Field(0.0, ge=0, le=1)
    """Probability of Gaussian noise with a standard deviation drawn from zero up to `noise_std`."""
    noise_std: float = Field(0.1, ge=0, json_schema_extra=ui(advanced=True))
    """Largest standard deviation of the noise, in units of the network input."""
    smooth: float = Field(0.0, ge=0, le=1)
    """Probability of Gaussian smoothing with a sigma per axis drawn from `smooth_sigma`."""
    smooth_sigma: tuple[float, float] = Field((0.5, 1.0), json_schema_extra=ui(advanced=True))
    """Bounds of the sigma of the smoothing, in voxels."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Probability of a gamma change with an exponent drawn from `gamma_range`."""
    gamma_range: tuple[float, float] = Field((0.75, 1.25), json_schema_extra=ui(advanced=True))
    """Bounds of the exponent of a gamma change."""
    gamma_keeps: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Give a view its mean and standard deviation back after a gamma change."""
    gamma_inverts: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Change the negative of a view by gamma: bright parts in place of dark ones."""
    linear_contrast: float = Field(0.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability that distances from the view's mean are multiplied by U(0.75, 1.25), within the range it had."""
    brightness: float = Field(0.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability of a multiplication by a factor within 1 ± `brightness_range`."""
    brightness_range: float = Field(0.25, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Half width of the range of brightness factors."""
    shift: float = Field(0.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability that a number within ± `shift_range` is added."""
    shift_range: float = Field(0.1, ge=0, json_schema_extra=ui(advanced=True))
    """Largest number that is added, in units of the network input."""
    quarter_turn: float = Field(0.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability of a turn by 90, 180 or 270 degrees within slices, where views are as wide as high."""
    elastic: float = Field(0.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability of a smooth random deformation."""
    elastic_voxels: float = Field(2.0, ge=0, json_schema_extra=ui(advanced=True))
    """Standard deviation of the displacement in the strongest deformation, in voxels; drawn from zero up to it."""
    low_resolution: float = Field(0.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability that a view is seen at U(0.5, 1) of its resolution."""
    colours: float = Field(0.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Pictures with values in [0, 1]: probability that brightness, contrast, saturation and hue change, in random
    order."""
    jitter: tuple[float, float, float, float] = Field((0.4, 0.4, 0.4, 0.1), json_schema_extra=ui(advanced=True))
    """Largest change of brightness, contrast and saturation, as shares, and of the hue, as a share of the circle."""
    grey: float = Field(0.0, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Pictures: probability that the colours are taken out."""


class SequenceConfig(ConfigModel):
    """How a view is glued from slabs along z (AR-SSL4M, "sequences"); used where `view` is "sequence"."""

    spatial: float = Field(1.0, ge=0)
    """Weight of spatial sequences: overlapping slabs of one crop."""
    contrast: float = Field(0.0, ge=0)
    """Weight of contrast sequences: the same box in the co-registered contrasts of one case."""
    semantic: float = Field(0.0, ge=0)
    """Weight of semantic sequences: lesions of one type in different patients."""
    slabs: int = Field(4, ge=2, json_schema_extra=ui(advanced=True))
    """Slabs in a view."""
    stride: int = Field(8, ge=1, json_schema_extra=ui(advanced=True))
    """Voxels between the starts of neighbouring slabs of a spatial sequence."""
    contrasts: tuple[str, ...] = ()
    """Contrasts of a contrast sequence, in this order; empty takes those of the dataset."""
    lesions: Path | None = None
    """Table of lesion boxes with a type, for semantic sequences: DeepLesion's ``DL_info.csv``, or a CSV with `case`,
    `type` and the place, as the guide on sequences says."""
    lists: tuple[Path, ...] = ()
    """List files of the published pre-processing, whose ``.npy`` crops are used in place of a dataset; when empty,
    those in the folder given as dataset. Every line is drawn once an epoch, whatever the weights."""
    subset: bool = Field(False, json_schema_extra=ui(advanced=True))
    """With `lists`: the authors' subset, spatial crops of seven data sets and every second other line."""


class LabelledConfig(ConfigModel):
    """A second stream of views, cut from labelled cases, for methods that learn with and without labels at once."""

    dataset: Path | None = Field(None, json_schema_extra=ui(widget="dataset"))
    """Dataset of the labelled cases; empty takes those of `data.dataset`."""
    cases: int | None = Field(None, ge=1)
    """Use only this many labelled training cases (chosen by the seed); empty uses all."""
    per_view: int = Field(1, ge=1)
    """Labelled crops beside each view of a batch."""
    crops_per_volume: int = Field(4, ge=1, json_schema_extra=ui(advanced=True))
    """Crops cut from a labelled volume each time it is opened."""
    foreground: float = Field(0.9, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Share of crops centred on a labelled voxel."""
    augment: AugmentConfig = AugmentConfig(flip=(0.2, 0.2, 0.2), quarter_turn=0.2, shift=0.1)


ReportPart = Literal["whole", "findings", "impression"]
"""What of a report is read."""


class DataConfig(ConfigModel):
    """The dataset and the views that training cuts from it."""

    dataset: Path = Field(Path(), json_schema_extra=ui(widget="dataset"))
    """Folder made by ``med3dssl data ingest``."""
    contrasts: tuple[str, ...] = ()
    """Contrasts stacked as input channels, in this order; empty means the first image of each case."""
    view: Literal["crop", "volume", "sequence", "resized", "text"] = "crop"
    """crop: random boxes of `size` voxels. volume: the whole body resampled to `size` voxels. sequence: slabs glued
    along z, as `sequence` says. resized: a random part of a picture in training, else all of it, resized to `size`.
    text: the report, no voxels."""
    report_part: ReportPart = Field("whole", json_schema_extra=ui(advanced=True))
    """What of a report is read. whole: all of it. findings, impression: that part, told by headings or by a blank line
    between the two; cases whose report does not have it are left out."""
    size: tuple[int, int, int] = (96, 96, 96)
    """Voxels of one view along (z, y, x)."""
    area: tuple[float, float] = Field((0.2, 1.0), json_schema_extra=ui(advanced=True))
    """With resized views: bounds of the share of a picture that a training view shows."""
    keep_aspect: bool = True
    """With whole volumes: keep proportions and pad. Off stretches every axis, as TANGERINE's helper does."""
    centre: tuple[float, float, float] = Field((1.0, 1.0, 1.0), json_schema_extra=ui(advanced=True))
    """With whole volumes: share of the body along (z, y, x) that is seen, about its middle (0.88 0.65625 0.875 in
    MG-3D; 1 0.75 0.75 in CC-CCII: 384 of 512 pixels)."""
    wander: int = Field(0, ge=0, json_schema_extra=ui(advanced=True))
    """With whole volumes: pixels of a training view that its middle moves by at most, at random."""
    crops_per_volume: int = Field(2, ge=1, json_schema_extra=ui(advanced=True))
    """Crops cut from a volume each time it is opened."""
    foreground: float = Field(0.5, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Share of crops centred on a labelled voxel when labels are used, or on the body otherwise."""
    balanced: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Classification: repeat training cases of rare classes until every class comes as often as the largest."""
    train_cases: int | None = Field(None, ge=1)
    """Use only this many training cases (chosen by the seed); empty uses all."""
    only: Path | None = Field(None, json_schema_extra=ui(advanced=True))
    """File with the ids of the training cases to use: one per line, or the ``buffer.json`` of a rehearsal buffer."""
    order: Literal["exact", "replacement"] = Field("exact", json_schema_extra=ui(advanced=True))
    """exact: every training case once an epoch, in random order. replacement: as many draws, each from all cases, as
    MedCoSS's authors do."""
    intensity: IntensityConfig = IntensityConfig()
    augment: AugmentConfig = AugmentConfig()
    sequence: SequenceConfig = Field(SequenceConfig(), json_schema_extra=ui(advanced=True))
    labelled: LabelledConfig | None = Field(None, json_schema_extra=ui(advanced=True))
    """The second stream, for methods that use it; empty otherwise."""
    workers: int | None = Field(None, ge=0, json_schema_extra=ui(advanced=True))
    """Loader processes; empty chooses from the processors. Batches do not depend on it."""

    @field_validator("centre", mode="before")
    @classmethod
    def _of_slices(cls, value: Any) -> Any:
        return centre_of(value)

    @field_validator("centre")
    @classmethod
    def _shares(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0 < share <= 1 for share in value):
            raise ValueError("give shares above 0 and up to 1")
        return value


def centre_of(value: Any) -> Any:
    """A share of height and width, as earlier versions wrote `DataConfig.centre`, as one per axis; others as is."""
    return (1.0, value, value) if isinstance(value, int | float) else value


class IngestConfig(ConfigModel):
    """How files become a dataset's store."""

    spacing_mm: tuple[float, float, float] | None = None
    """Millimetres along (z, y, x) that every volume is resampled to; empty keeps each volume's own."""
    crop_body: bool = True
    """Store only the box around the body (plus 8 voxels); predictions are put back onto the file's grid."""
    clean_reports: bool = False
    """Reduce reports to lower-case words without punctuation, as the published text stage of MedCoSS reads them; one
    that has nothing left is quarantined."""
    align: bool = False
    """Turn and shift the further contrasts of a case to where they fit its first one best, for headers that do not
    agree. All contrasts are put on the first one's grid in any case."""
    label_values: dict[int, int] = Field({}, json_schema_extra=ui(advanced=True))
    """Class that a value of the label maps stands for, such as 205: 1; values that are not named stay what they are."""
    splits: tuple[float, float, float] = (0.8, 0.2, 0.0)
    """Shares of subjects in train, val and test when the source gives no split."""
    seed: int = 0
    """Seed of the subject-level split."""
    workers: int | None = Field(None, ge=0)
    """Reading processes; empty chooses from the processors."""
    max_voxels: int = 2_000_000_000
    """A header that claims more voxels than this is quarantined before anything is allocated."""

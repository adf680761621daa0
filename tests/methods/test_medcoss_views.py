"""What is shown of MedCoSS's networks: the numbers in the pictures are those of a step on a buffer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training_backend.config import IngestConfig
from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data import rehearsal
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantom_modalities import tissue, write_modality
from training_backend.data.phantoms import thorax_ct
from training_backend.data.prepare import InputProfile, prepare
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.view import draw
from training_backend.methods.base import Frame
from training_backend.methods.medcoss_views import (
    DriftOptions,
    MixtureOptions,
    PositionRowsOptions,
    drift,
    mixture,
    position_rows,
)
from training_backend.nn.medcoss_distil import distillation_loss
from training_backend.weights.load import load_model
from training_backend.weights.save import save_model
from training_backend.weights.teacher import save_teacher

MEDCOSS = method("medcoss")
COLOURS = ("blue", "green", "red")


def config(modality: str = "3D_CT", **changes: Any) -> Any:
    data = {"contrasts": COLOURS} if modality == "2D_path" else {}
    return pretrain_config("medcoss", "tiny", Path("d"), {"method": {"modality": modality, **changes}, "data": data})


def built(seed: int = 0, modality: str = "3D_CT", **changes: Any) -> Any:
    torch.manual_seed(seed)
    return MEDCOSS.build(config(modality, **changes)).eval()


def view_of(seed: int, channels: int = 1, size: tuple[int, int, int] = (16, 48, 48)) -> torch.Tensor:
    return torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(seed))


def last(frames: Iterator[Frame]) -> Frame:
    with torch.inference_mode():
        *_, frame = frames
    return frame


def arrays(frame: Frame) -> dict[str, np.ndarray]:
    return {one.name: one.array for one in frame.pictures}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("axes", ["zyx", "zxy"])
def test_a_mixture_is_the_sum_of_shares_and_hides_what_the_network_does_not_see(axes: str) -> None:
    network, first, second = built(axes=axes), view_of(1), view_of(2)
    frame = last(mixture(network, first, MixtureOptions(share=0.25), generator(), other=second))
    found = arrays(frame)
    expected = (0.25 * first + 0.75 * second)[0, 0].numpy()
    np.testing.assert_allclose(found["mixture"], expected, atol=1e-6)
    hidden = found["mask"].repeat(8, 0).repeat(8, 1).repeat(8, 2).astype(bool)
    np.testing.assert_allclose(found["seen"], np.where(hidden, 0, expected), atol=1e-6)
    assert int((found["mask"] == 0).sum()) == 18  # a quarter of 72
    assert "25% of this scan and 75% of the other one" in frame.text
    # a voxel of a hidden patch does not reach the features, one of a visible patch does
    noise = network.draw_noise(first, generator())
    mixed = torch.from_numpy(expected)[None, None]
    with torch.inference_mode():
        before = network.encode_image(mixed, noise)
        for patches, same in ((found["mask"] == 1, True), (found["mask"] == 0, False)):
            z, y, x = np.argwhere(patches)[3] * 8
            changed = mixed.clone()
            changed[0, 0, z : z + 8, y : y + 8, x : x + 8] += torch.rand(8, 8, 8)
            assert torch.equal(network.encode_image(changed, noise), before) is same


def test_only_views_of_one_size_are_mixed() -> None:
    with pytest.raises(DataError, match="16 × 48 × 48 and 16 × 40 × 48"):
        last(mixture(built(), view_of(1), MixtureOptions(), generator(), other=view_of(2, size=(16, 40, 48))))


def test_drift_is_the_distance_of_tokens_and_its_mean_the_loss_of_distillation() -> None:
    student, teacher, volume = built(1), built(2), view_of(3)
    frame = last(drift(student, volume, DriftOptions(), generator(), against=teacher))
    with torch.inference_mode():
        now, then = student.encode_image(volume), teacher.encode_image(volume)
    expected = (now - then).square().mean(dim=2)[0, 1:].reshape(2, 6, 6).numpy()
    np.testing.assert_allclose(arrays(frame)["drift"], expected, rtol=1e-4)
    assert f"distance {float(distillation_loss(now, then)):.3g}," in frame.text
    place = (np.unravel_index(expected.argmax(), expected.shape) + np.array(0.5)) * 8
    assert f"around z, y, x = {', '.join(str(int(n)) for n in place)} of the view" in frame.text
    cosine = last(drift(student, volume, DriftOptions(measure="cosine", highest=0.5), generator(), against=teacher))
    angle = 1 - F.cosine_similarity(now, then, dim=2)[0, 1:].reshape(2, 6, 6).numpy()
    np.testing.assert_allclose(arrays(cosine)["drift"], angle, atol=1e-5)
    assert cosine.pictures[0].limits == (0.0, 0.5)
    same = last(drift(student, volume, DriftOptions(), generator(), against=student))
    assert not arrays(same)["drift"].any()
    with pytest.raises(ConfigError, match=r"2 × 6 × 6 tokens of 96 numbers .* 2 × 6 × 6 tokens of 64"):
        last(drift(student, volume, DriftOptions(), generator(), against=built(embed_dim=64)))


@pytest.mark.parametrize("axes", ["zyx", "zxy"])
def test_a_position_resembles_itself_and_the_row_that_was_made_alike(axes: str) -> None:
    network = built(axes=axes)
    table = network.video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight
    with torch.no_grad():
        mine, alike = ((0, 2, 5), (1, 3, 4)) if axes == "zyx" else ((0, 5, 2), (1, 4, 3))
        rows = [int(np.ravel_multi_index(place, (2, 6, 6))) for place in (mine, alike)]
        table[rows[1]] = 2 * table[rows[0]]
    frame = last(position_rows(network, view_of(1), PositionRowsOptions(point=(3, 20, 41)), generator()))
    found = arrays(frame)["likeness"]
    assert found[0, 2, 5] == pytest.approx(1, abs=1e-5)
    assert found[1, 3, 4] == pytest.approx(1, abs=1e-5)
    assert np.sort(found.ravel())[-3] < 0.7  # of random rows
    assert "most alike position of another patch has a cosine of 1.00" in frame.text
    assert "first 72 of 512 rows" in frame.text


def test_colours_are_shown_in_their_own_order_whatever_order_the_network_reads() -> None:
    network, volume = built(modality="2D_path"), view_of(1, 3, (1, 64, 64))
    pictures = {one.name: one for one in MEDCOSS.preview(network, volume, {}, generator())}
    assert pictures["original"].role == "rgb"
    assert pictures["original"].array.dtype == np.uint8  # which viewers do not stretch
    np.testing.assert_allclose(pictures["original"].array / 255, volume[0].flip(0).movedim(0, -1).numpy(), atol=0.002)
    other = view_of(2, 3, (1, 64, 64))
    mixed = last(mixture(network, volume, MixtureOptions(share=1.0), generator(), other=other))
    np.testing.assert_array_equal(arrays(mixed)["mixture"], pictures["original"].array)


def test_a_network_without_the_decoder_says_so() -> None:
    network = built(modality="2D_path", encodes=("3d", "text"))
    assert network.limits.startswith("It reads reports and volumes too but holds no decoder for them")
    assert built().limits == ""
    with pytest.raises(ConfigError, match=r"no decoder for 3d images, only for 2d\..* the published file holds"):
        MEDCOSS.preview(network, view_of(1), {}, generator())


def test_two_models_are_compared_on_a_scan_and_placed_on_it(tmp_path: Path) -> None:
    for seed in (1, 2):
        made = config()
        profile = InputProfile(size=made.data.size, crop_body=False, intensity=made.data.intensity)
        card = {"kind": "pretrain", "config": made.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
        save_model(tmp_path / str(seed), built(seed), card)
    first, second = (load_model(tmp_path / str(seed)) for seed in (1, 2))
    scan = prepare([thorax_ct(0, (20, 52, 60)).volume], first.profile)
    drawing = draw(first, scan, "drift", against=second)
    *_, frame = drawing.frames
    (picture,) = drawing.placed(frame)
    assert picture.geometry.spacing_mm == pytest.approx([8 * mm for mm in scan.geometry.spacing_mm])
    assert picture.picture.array.max() > 0
    picture_model = config("2D_path")
    card = {"kind": "pretrain", "config": picture_model.model_dump(mode="json")}
    profile = InputProfile(size=(1, 64, 64), view="resized", contrasts=COLOURS, crop_body=False)
    save_model(tmp_path / "3", built(3, "2D_path"), {**card, "profile": profile.model_dump(mode="json")})
    with pytest.raises(ConfigError, match="1 and 3 contrasts"):
        draw(first, scan, "drift", against=load_model(tmp_path / "3"))
    with pytest.raises(ConfigError, match=r"No teacher is kept .* Choose a second model"):
        draw(first, scan, "drift")


def test_a_colour_picture_of_any_size_is_reconstructed_where_it_lies() -> None:
    made = config("2D_path")
    pixels, _ = tissue(3, 96)
    geometry = Geometry.from_spacing((1, 96, 96), (1.0, 0.5, 0.5))
    volumes = [
        Volume(np.ascontiguousarray(pixels[None, ..., k]), geometry, name=name, meta={"contrast": name, "largest": 255})
        for k, name in enumerate(("red", "green", "blue"))
    ]
    profile = InputProfile(size=(1, 64, 64), view="resized", contrasts=COLOURS, crop_body=False)
    prepared = prepare(volumes, profile)
    np.testing.assert_allclose(prepared.array.mean(axis=(1, 2, 3)) * 255, pixels.mean(axis=(0, 1))[::-1], atol=2)
    network = built(modality="2D_path")
    pictures = MEDCOSS.preview(network, torch.from_numpy(prepared.array)[None], {}, generator())
    original = pictures[0].array
    np.testing.assert_allclose(original.mean(axis=(0, 1, 2)), pixels.mean(axis=(0, 1)), atol=2)
    assert made.data.size == (1, 64, 64)


def test_the_teacher_beside_a_stage_is_what_drift_is_measured_from(tmp_path: Path) -> None:
    ingest(write_modality(tmp_path / "ct", "3D_CT", 4), tmp_path / "data", IngestConfig(workers=0))
    dataset = Dataset.open(tmp_path / "data")
    features = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    chosen = rehearsal.choose(features, "random", 0.5)
    cases = dataset.cases()
    made = rehearsal.make("3D_CT", "3d", dataset, {}, cases, chosen, policy="random", ratio=0.5, seed=0)
    made.save(tmp_path / "buffer", features, chosen)
    run = config("3D_MR", rehearsal={"buffers": (tmp_path / "buffer",)})
    network, part = built(1), MEDCOSS.snapshot(run)
    assert part is not None
    teacher = part.build(run)
    card_config = MEDCOSS.contained(network, run)
    card_config = card_config.updated({"method": card_config.method.portable()})  # its buffers are found nowhere
    profile = InputProfile(size=run.data.size, crop_body=False).model_dump(mode="json")
    kept = save_teacher(tmp_path / "run", teacher, 0)
    card = {"kind": "pretrain", "config": card_config.model_dump(mode="json"), "profile": profile, "teacher": kept}
    save_model(tmp_path / "run", network, card)
    shutil.rmtree(tmp_path / "buffer")
    loaded = load_model(tmp_path / "run")
    torch.testing.assert_close(loaded.teacher.state_dict(), teacher.state_dict())
    scan = prepare([thorax_ct(0, (16, 48, 48)).volume], loaded.profile)
    *_, frame = draw(loaded, scan, "drift").frames
    given = torch.from_numpy(scan.array)[None]
    with torch.inference_mode():
        expected = distillation_loss(network.encode_image(given), teacher.eval().encode_image(given))
    assert f"distance {float(expected):.3g}," in frame.text

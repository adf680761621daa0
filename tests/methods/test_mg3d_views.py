"""What MG-3D's networks show: maps are their gates, what is remembered is what was seen, texts stay in their place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.methods.test_mg3d import TEXTS, batch, config, dataset, network
from training_backend.data.text import sentences
from training_backend.errors import DataError
from training_backend.methods.base import Frame, ReportedCase
from training_backend.methods.mg3d import METHOD
from training_backend.nn.reports import read_reports

__all__ = ["dataset"]

VIEWS = {view.name: view for view in METHOD.views}


@pytest.fixture(scope="module")
def model(dataset: Path) -> Any:
    """Network whose gates differ from place to place, as those of a trained one do."""
    made = network(config(dataset)).eval()
    for block in (*made.local_img_cross_multihead_attention, *made.local_text_cross_multihead_attention):
        for layer in (block.query1, block.query2, block.key1, block.key2):
            layer.weight.data.mul_(8)
    return made


@pytest.fixture
def volume() -> torch.Tensor:
    return batch().volume[:1]


def frames(
    model: Any, name: str, volume: torch.Tensor, beside: dict[str, Any] | None = None, **options: Any
) -> list[Frame]:
    view = VIEWS[name]
    with torch.inference_mode():
        return list(
            view.draw(model, volume, view.options.parse(options), torch.Generator().manual_seed(0), **(beside or {}))
        )


def last(*arguments: Any, **options: Any) -> Frame:
    return frames(*arguments, **options)[-1]


@pytest.fixture
def gates(model: Any, volume: torch.Tensor) -> Iterator[Any]:
    """Passes over the first report, from the network itself."""
    with torch.inference_mode():
        reports = read_reports([sentences(TEXTS[0])], model.tokeniser, torch.Generator())
        said, tokens = model.read(reports), model.look(volume)
        whole = model.wholes(tokens, said, reports, (2, 1, 1)).gates
        words = model.words(replace(said, masked=said.whole), reports, tokens, (2, 1, 1)).gates
        yield reports, whole, words


def test_the_map_of_a_sentence_is_its_gate(model: Any, volume: torch.Tensor, gates: Any) -> None:
    _, whole, _ = gates
    for number in (1, 2):
        plain = last(model, "sentences", volume, text=TEXTS[0], sentence=number, smooth=False, layer="first")
        assert torch.equal(torch.from_numpy(plain.pictures[0].array).flatten(), whole[0][1][0, number - 1])
        back = last(
            model,
            "sentences",
            volume,
            text=TEXTS[0],
            sentence=number,
            smooth=False,
            layer="second",
            looking="scan to text",
        )
        assert torch.equal(torch.from_numpy(back.pictures[0].array).flatten(), whole[1][0][0, :, number - 1])
        assert plain.pictures[0].voxels == (32, 32, 32)
    smooth = last(model, "sentences", volume, text=TEXTS[0], sentence=1).pictures[0]
    mean = (whole[0][1][0, 0] + whole[1][1][0, 0]).view(1, 1, 2, 1, 1) / 2
    wanted = F.interpolate(mean, scale_factor=8, mode="trilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(smooth.array, wanted, rtol=1e-6)
    assert smooth.voxels == (4, 4, 4)
    assert smooth.limits == pytest.approx((float(mean.min()), float(mean.max())))


def test_the_map_of_a_word_is_that_of_its_tokens(model: Any, volume: torch.Tensor, gates: Any) -> None:
    reports, _, words = gates
    frame = last(model, "sentences", volume, text=TEXTS[0], sentence=2, word=2, smooth=False, layer="first")
    assert [piece.text for piece in frame.passages[1].pieces] == ["The ", "heart ", "is ", "large", "."]
    place = int((reports.sentence[0] == 2).nonzero()[1, 0])
    assert torch.equal(torch.from_numpy(frame.pictures[0].array).flatten(), words[0][0][0, place])
    assert "".join(piece.text for piece in frame.passages[0].pieces) == sentences(TEXTS[0])[0]


def test_what_was_seen_is_remembered_until_scan_or_weights_change(
    model: Any, volume: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    real = type(model).look
    monkeypatch.setattr(type(model), "look", lambda self, seen: looks.append(1) or real(self, seen))
    other = batch().volume[1:]
    first = last(model, "query", other, text="nodule")
    again = last(model, "query", other, text="nodule")
    last(model, "query", other, text="large heart")
    assert len(looks) == 1
    assert np.array_equal(first.pictures[0].array, again.pictures[0].array)
    last(model, "query", volume, text="nodule")
    assert len(looks) == 2
    with torch.no_grad():
        next(model.vision_encoder.parameters()).add_(0.1)
    changed = last(model, "query", volume, text="nodule")
    assert len(looks) == 3
    with torch.no_grad():
        next(model.vision_encoder.parameters()).sub_(0.1)
    assert changed.text.startswith("Gates from")


def test_words_without_a_meaning_are_told(model: Any, volume: torch.Tensor) -> None:
    assert "no words that the model knows" in last(model, "query", volume, text="zeppelin").text
    assert "no words" not in last(model, "query", volume, text="nodule").text


def test_hidden_words_are_told_with_their_guesses(model: Any, volume: torch.Tensor) -> None:
    frame = last(model, "words", volume, text=TEXTS[0], word_ratio=0.5, guesses=3)
    pieces = [piece for passage in frame.passages for piece in passage.pieces]
    hidden = [piece for piece in pieces if piece.kind != "plain"]
    assert len(hidden) == round(0.5 * len(pieces))
    assert all(piece.told.count("%") == 3 for piece in hidden)
    assert not any(piece.told for piece in pieces if piece.kind == "plain")
    right = [piece for piece in hidden if piece.told.split()[0] == piece.text.strip().lower()]
    assert [piece.kind for piece in hidden] == ["right" if piece in right else "wrong" for piece in hidden]
    assert frame.text.startswith(f"{len(right)} of {len(hidden)} hidden tokens")
    assert not frame.pictures


def test_hidden_blocks_are_as_many_as_asked(model: Any, volume: torch.Tensor) -> None:
    frame = last(model, "voxels", volume, text=TEXTS[0], mask_ratio=0.25)
    pictures = {one.name: one.array for one in frame.pictures}
    assert list(pictures) == ["original", "masked", "reconstruction", "error"]
    assert (pictures["masked"] == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert frame.text.startswith("25% of the blocks")


def test_patients_are_compared_by_sentence(model: Any) -> None:
    both = batch().volume
    cases = [ReportedCase(name, both[k : k + 1], TEXTS[k]) for k, name in enumerate("ab")]
    *on_the_way, frame = frames(model, "patients", both[:1], {"cases": cases})
    assert [one.share for one in on_the_way] == sorted(one.share for one in on_the_way)
    texts, scans, bands, whole = frame.pictures
    assert texts.names[0] == ("a · 1", "a · 2", "b · 1", "b · 2")
    assert all(one.array.shape == (4, 4) for one in (texts, scans, bands))
    np.testing.assert_allclose(np.diag(texts.array), 1, rtol=1e-5)
    assert np.array_equal(bands.array, (texts.array >= 0.9).astype(int) - (texts.array <= 0.6).astype(int))
    reports = read_reports([sentences(text) for text in TEXTS], model.tokeniser, torch.Generator())
    with torch.inference_mode():
        found = model.wholes(model.look(both), model.read(reports), reports, (2, 1, 1))
    np.testing.assert_allclose(whole.array, found.cross_logits * 0.1, atol=1e-5)
    seen = F.normalize(found.sentences[reports.present], dim=-1)
    np.testing.assert_allclose(scans.array, seen @ seen.T, atol=1e-4)
    assert [passage.title for passage in frame.passages] == list(texts.names[0])
    with pytest.raises(DataError, match="Choose 2 to 12"):
        frames(model, "patients", both[:1], {"cases": cases[:1]})


def test_sentences_of_a_report_leave_the_network_as_passages_only(model: Any, volume: torch.Tensor) -> None:
    for name in ("sentences", "words", "voxels"):
        frame = last(model, name, volume, text="Zeppelin in the heart. Wombat.")
        told = f"{frame.text} {[(one.name, one.names) for one in frame.pictures]}".lower()
        assert "zeppelin" not in told
        assert "wombat" not in told


@pytest.mark.parametrize("name", ["sentences", "voxels", "words"])
def test_an_empty_report_gets_a_sentence(model: Any, volume: torch.Tensor, name: str) -> None:
    with pytest.raises(DataError, match="no report with a sentence"):
        frames(model, name, volume, text=" - ")


def test_sentences_and_words_that_are_not_there_get_a_sentence(model: Any, volume: torch.Tensor) -> None:
    with pytest.raises(DataError, match="has 2 sentences that are read"):
        frames(model, "sentences", volume, text=TEXTS[0], sentence=3)
    with pytest.raises(DataError, match="has 5 words that are read, not 6"):
        frames(model, "sentences", volume, text=TEXTS[0], sentence=2, word=6)
    with pytest.raises(DataError, match="Nothing to look for"):
        frames(model, "query", volume, text="  ")

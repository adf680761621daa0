"""What networks of tasks on texts show: findings with prompts that may change, written reports beside true ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tasks import test_report_generation as writing
from tests.tasks import test_text_match as matching
from training_backend.data.text import words
from training_backend.errors import DataError
from training_backend.methods.base import Frame
from training_backend.tasks import report_generation, retrieval, vocabulary
from training_backend.tasks.text_views import FINDINGS, WRITTEN
from training_backend.tasks.vocabulary import CT_RATE


@pytest.fixture(scope="module", params=[0, 1])
def model(request: pytest.FixtureRequest, told: Path) -> Any:
    """Networks without and with gates."""
    run = matching.config("vocabulary", told, findings=("Nodule", "Effusion"), gates=request.param, project=24)
    return matching.network(vocabulary, run).eval()


def last(view: Any, network: Any, **options: Any) -> Frame:
    with torch.inference_mode():
        drawn = view.draw(network, matching.volumes(2)[1:], view.options.parse(options), torch.Generator())
        return list(drawn)[-1]


def test_findings_have_the_probabilities_that_the_task_predicts(model: Any) -> None:
    frame = last(FINDINGS, model)
    assert [passage.title for passage in frame.passages] == ["Nodule", "Effusion"]
    assert [piece.text for piece in frame.passages[0].pieces] == ["Nodule.", "not Nodule."]
    with torch.inference_mode():
        wanted = model.presence(model.image_tokens(matching.volumes(2)[1:]), ("Nodule", "Effusion"))[0]
    assert [passage.value for passage in frame.passages] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert not frame.pictures


def test_prompts_can_be_changed(model: Any) -> None:
    options = {"findings": ("Nodule", "Heart"), "present": ("There is a nodule.", ""), "absent": ("No nodule.",)}
    frame = last(FINDINGS, model, **options)
    assert [piece.text for piece in frame.passages[0].pieces] == ["There is a nodule.", "No nodule."]
    assert [piece.text for piece in frame.passages[1].pieces] == ["Heart.", "not Heart."]
    with torch.inference_mode():
        tokens = model.image_tokens(matching.volumes(2)[1:])
        there, swapped = (
            float(model.preference(tokens, [pair])[0, 0])
            for pair in (("There is a nodule.", "No nodule."), ("No nodule.", "There is a nodule."))
        )
    assert frame.passages[0].value == pytest.approx(there, abs=1e-6)
    assert there + swapped == pytest.approx(1, abs=0.02)  # exactly so without gates


def test_gates_are_drawn_where_there_are_some(model: Any) -> None:
    frame = last(FINDINGS, model, sentence=2, map="gates")
    if not len(model.local_img_cross_multihead_attention):
        assert "no gates" in frame.text
        return
    (picture,) = frame.pictures
    with torch.inference_mode():
        gate = model.gates(model.image_tokens(matching.volumes(2)[1:]), "Effusion.")[0]
    assert picture.array.shape == tuple(16 // step for step in picture.voxels)
    assert picture.limits == pytest.approx((float(gate.min()), float(gate.max())), abs=1e-5)
    corner = picture.array[0, 0, 0], picture.array[-1, -1, -1]
    np.testing.assert_allclose(corner, [gate[0], gate[-1]], rtol=1e-4)


def test_what_places_add_is_the_score(model: Any) -> None:
    with torch.inference_mode():
        tokens, rows = model.image_tokens(matching.volumes(2)), model.text_rows(["Nodule.", "not Nodule.", "Effusion."])
        shares = model.contributions(tokens, rows)
        assert shares.shape == (2, 3, tokens.shape[1])
        torch.testing.assert_close(shares.sum(-1), model.scores(tokens, rows))


@pytest.mark.parametrize("than", ["other findings", "its opposite"])
def test_what_speaks_for_a_finding_is_drawn_beside_a_usual_scan(model: Any, than: str) -> None:
    with torch.inference_mode():
        tokens = model.image_tokens(matching.volumes(2)[1:])
        usual = tokens.flip(1)[0]
        against = "Nodule." if than == "other findings" else "not Effusion."
        rows = model.text_rows(["Effusion.", against])
        mine, theirs = (model.table(one, rows)[0].diff().neg() for one in (tokens, usual[None]))
    model.usual = usual.clone()
    frame = last(FINDINGS, model, sentence=2, than=than)
    (picture,) = frame.pictures
    assert picture.array.min() >= 0
    assert float(frame.text.rsplit("together ", 1)[1].rstrip(".")) == pytest.approx(float(mine - theirs), abs=2e-3)
    model.usual = tokens[0].clone()
    assert last(FINDINGS, model, sentence=2, than=than).pictures[0].array.max() < 1e-6  # a scan is as usual as itself


def test_a_finding_that_cannot_be_drawn_is_said(model: Any) -> None:
    with pytest.raises(DataError, match="finding 9 cannot"):
        last(FINDINGS, model, sentence=9)
    with pytest.raises(DataError, match="one finding alone"):
        last(FINDINGS, model, sentence=1, findings=("Nodule",))


def test_a_usual_scan_is_a_mean_over_those_that_were_learnt_from(told: Path) -> None:
    network = matching.network(retrieval, matching.config("retrieval", told))
    volumes = matching.volumes(4)
    network.eval()
    network.image_tokens(volumes)
    assert not network.usual.any()
    network.train()
    seen = torch.stack([network.image_tokens(volumes[:2]), network.image_tokens(volumes[2:])])
    torch.testing.assert_close(network.usual, seen.mean((0, 1)).detach())


def test_weights_from_before_there_was_a_usual_scan_are_read(told: Path) -> None:
    network = matching.network(retrieval, matching.config("retrieval", told))
    older = {name: tensor for name, tensor in network.state_dict().items() if name not in network.optional}
    assert len(older) == len(network.state_dict()) - 2
    network.load_state_dict(older)
    with pytest.raises(RuntimeError, match="temperature"):
        network.load_state_dict({name: tensor for name, tensor in older.items() if name != "temperature"})


def test_a_network_that_names_no_findings_is_asked_for_those_of_ct_rate(told: Path) -> None:
    network = matching.network(retrieval, matching.config("retrieval", told)).eval()
    frame = last(FINDINGS, network)
    assert tuple(passage.title for passage in frame.passages) == CT_RATE


def test_a_written_report_is_marked_where_it_differs(told: Path) -> None:
    network: Any = writing.network(writing.config(told)).eval()
    run = writing.config(told)
    volume = matching.volumes(2)[1:]
    with torch.inference_mode():
        ids = report_generation.TASK.predict(network, run, volume, None)
    mine = network.words.decode(ids.int().tolist()).split()
    true = "Wombat in the lung. The heart is large."
    frame = last(WRITTEN, network, text=true)
    written, reference = frame.passages
    assert [piece.text.strip() for piece in written.pieces] == mine
    assert [piece.text.strip() for piece in reference.pieces] == words(true)
    assert {piece.kind for piece in written.pieces} <= {"plain", "added"}
    assert reference.pieces[0].kind == "missing"
    kept = [[piece.text.strip() for piece in one.pieces if piece.kind == "plain"] for one in frame.passages]
    assert kept[0] == kept[1]
    same = last(WRITTEN, network, text=" ".join(mine))
    if words(" ".join(mine)) == mine:
        assert all(piece.kind == "plain" for passage in same.passages for piece in passage.pieces)
    alone = last(WRITTEN, network)
    assert [passage.title for passage in alone.passages] == ["written"]
    assert "No report" in alone.text

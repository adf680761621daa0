"""What MG-3D learns in minutes: scans, reports and questions fit, and shares are counted rightly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.bench import mg3d_proof
from training_backend.bench.mg3d_proof import LOBES, Question, consolidated, shares
from training_backend.bench.voco_proof import labelled_views, made
from training_backend.config.presets import pretrain_config
from training_backend.data.dataset import Dataset
from training_backend.data.phantom_thorax import NODULE
from training_backend.methods.mg3d import METHOD


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    dataset = mg3d_proof.cohort(tmp_path_factory.mktemp("proof"), 10)
    return pretrain_config("mg3d", "tiny", dataset, mg3d_proof.EASED)


def test_reports_name_the_lobes_that_are_solid_and_no_others() -> None:
    seen = set()
    for seed in range(12):
        phantom = consolidated(seed, (32, 32, 32))
        solid = phantom.labels.array == NODULE
        for lobe in LOBES:
            said = f"There is a consolidation in the {lobe}." in phantom.report
            assert said == bool(shares(solid, lobe).sum()), (seed, lobe)
            seen |= {(lobe, said)}
        assert ("No consolidation." in phantom.report) == (not solid.any())
        assert not solid.any() or phantom.volume.array[solid].mean() > 0
    assert seen >= {(lobe, True) for lobe in LOBES}


def test_each_lobe_lies_for_the_most_part_in_a_place_of_its_own(config: Any) -> None:
    scans = labelled_views(config, "train")
    reports = {case.id: case.report for case in Dataset.open(config.data.dataset).cases()}
    questions = mg3d_proof._placed(scans, reports)
    places = {lobe: {int(q.places.argmax()) for q in questions if lobe in q.text} for lobe in LOBES}
    named = [places[lobe] for lobe in LOBES if places[lobe]]
    assert all(len(each) == 1 for each in named)
    assert len(set.union(*named)) == len(named)
    assert {q.case for q in mg3d_proof._unplaced(scans, reports)} <= {q.case for q in questions}
    for question in mg3d_proof._elsewhere(questions, reports):
        assert question.text not in reports[question.case]


def test_a_question_is_found_where_most_of_the_finding_is() -> None:
    question = Question("a", "text", np.array([[[0.2, 0.5]], [[0.3, 0.0]]]))
    assert question.right(np.array([[[0.1, 0.9]], [[0.2, 0.3]]]))
    assert not question.right(np.array([[[0.1, 0.2]], [[0.9, 0.3]]]))


def test_maps_are_those_of_the_view_and_the_choice_is_made_apart(config: Any) -> None:
    scans = labelled_views(config, "train")
    reports = {case.id: case.report for case in Dataset.open(config.data.dataset).cases()}
    volumes = {case: volume for case, (volume, _) in scans.items()}
    network, questions = made(config, None), mg3d_proof._placed(scans, reports)
    drawn = ("scan to text", "first")
    view = next(view for view in METHOD.views if view.name == "query")
    options = view.options.parse({"text": questions[0].text, "looking": drawn[0], "layer": drawn[1], "smooth": False})
    with torch.inference_mode():
        (frame,) = view.draw(network, volumes[questions[0].case], options, torch.Generator())
    bright = np.zeros(frame.pictures[0].array.size)
    bright[frame.pictures[0].array.ravel().argmax()] = 1
    there = [replace(questions[0], places=bright), replace(questions[0], places=1 - bright)]
    assert mg3d_proof._share(network, volumes, there, drawn) == 0.5
    row = mg3d_proof.pointed(network, volumes, {"choice": questions, "placed": there})
    assert set(row) == {"gates", "choice", "placed"}


def test_what_follows_words_is_told_from_what_shows_the_solid_lobes_whatever_is_asked(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = {**labelled_views(config, "train"), **labelled_views(config, "val")}
    reports = {case.id: case.report for case in Dataset.open(config.data.dataset).cases()}
    placed = mg3d_proof._placed(scans, reports)
    network: Any = None
    monkeypatch.setattr(mg3d_proof, "_speaks", lambda network, volume, question: question.places)
    row = mg3d_proof.spoken(network, scans, placed, reports)
    assert (row["placed"], row["one_of_two"], row["told_apart"], row["elsewhere"]) == (1, 1, 1, 1)

    def solid(network: Any, volume: torch.Tensor, question: Question) -> Any:
        shown = sum(one.places for one in placed if one.case == question.case)
        return shown * np.linspace(1, 2, shown.size).reshape(shown.shape)  # no two places alike

    monkeypatch.setattr(mg3d_proof, "_speaks", solid)
    row = mg3d_proof.spoken(network, scans, placed, reports)
    assert row["pairs"] >= 2
    assert row["told_apart"] == 0.5
    assert row["elsewhere"] == 0
    assert row["placed_interval"][0] < row["placed"] < row["placed_interval"][1]


def test_what_speaks_for_a_sentence_is_drawn_by_networks_that_learnt_nothing_too(config: Any) -> None:
    scans = labelled_views(config, "train")
    reports = {case.id: case.report for case in Dataset.open(config.data.dataset).cases()}
    placed = mg3d_proof._placed(scans, reports)
    network = mg3d_proof._untrained(mg3d_proof.matching(Path(config.data.dataset), "", 1, 0))
    maps = [mg3d_proof._speaks(network, scans[question.case][0], question) for question in placed]
    assert all(one.shape == question.places.shape for one, question in zip(maps, placed, strict=True))
    assert min(one.min() for one in maps) >= 0
    assert max(one.max() for one in maps) > 0
    question = placed[0]
    volume = scans[question.case][0]
    with torch.inference_mode():
        network.usual.copy_(network.image_tokens(volume)[0])
    values = mg3d_proof._speaks(network, volume, question)
    assert values.max() < 1e-6  # a scan is as usual as itself
    assert not mg3d_proof._found(np.zeros_like(values), question)


def test_intervals_hold_the_share() -> None:
    assert mg3d_proof.interval(33, 66) == pytest.approx((0.383, 0.617), abs=2e-3)
    assert mg3d_proof.interval(66, 66)[1] == 1


@pytest.mark.learning
@pytest.mark.timeout(1800)
def test_minutes_teach_words_voxels_and_where_a_sentence_is_true(tmp_path: Path) -> None:
    parts = ("losses", "retrieval", "speaking")
    found = mg3d_proof.main(tmp_path, parts, seeds=(0,), starts=("mg3d",))
    before, after = found["losses"]["before"], found["losses"]["after"]
    assert before["word_accuracy"] < 0.2
    assert after["word_accuracy"] > 0.5
    assert after["voxels"] < 0.3 * before["voxels"]
    (recalled,) = found["retrieval"]["mg3d"]
    assert recalled["recall_1"] > 5 * recalled["chance_1"]
    (learnt,), (untrained,) = found["speaking"]["mg3d"], found["speaking"]["untrained"]
    assert learnt["placed_interval"][0] > max(2 * found["speaking"]["chance"], untrained["placed_interval"][1])
    assert learnt["told_apart"] > 0.6

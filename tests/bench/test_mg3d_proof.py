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


@pytest.mark.learning
def test_hidden_words_and_blocks_of_held_out_cases_are_learnt(tmp_path: Path) -> None:
    found = mg3d_proof.main(tmp_path, parts=("losses",), steps=240)["losses"]
    before, after = found["before"], found["after"]
    assert before["word_accuracy"] < 0.2
    assert after["word_accuracy"] > 0.5
    assert after["voxels"] < 0.3 * before["voxels"]

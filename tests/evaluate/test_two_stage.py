"""Two stages find what all pairs through the gates find; stores outlive the process; misuse is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.api.find import find
from training_backend.bench import retrieval as bench
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import DatasetInfo
from training_backend.data.phantoms import thorax_ct
from training_backend.data.prepare import stored_input
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.find_cases import find_by_scan
from training_backend.evaluate.retrieval import LatentStore, ranks
from training_backend.evaluate.score import score_split
from training_backend.evaluate.two_stage import (
    ScanStore,
    find_scans,
    gated_scores,
    scans_like,
    scans_resembling,
    store_of,
    two_stage_scores,
)
from training_backend.evaluate.view import draw
from training_backend.nn.text_match import TextMatch
from training_backend.weights.load import load_model

NUMBER, TOKENS, WIDTH = 12, 8, 16


class Words:
    """Stands for a tokeniser: a text's vector is drawn from its letters."""

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
        return torch.stack(rows)


@pytest.fixture
def match(monkeypatch: pytest.MonkeyPatch) -> TextMatch:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    text = BertModel(BertConfig(vocab_size=8, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2))
    network = TextMatch(None, None, text, None, 8, (TOKENS, WIDTH), gates=2, temperature=0.5).eval()
    for gate in network.local_img_cross_multihead_attention:
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter, std=0.6)  # gates that matter
    monkeypatch.setattr(network, "text_rows", Words())
    monkeypatch.setattr(network, "image_tokens", lambda volume: volume)
    return network


def scans() -> list[tuple[str, torch.Tensor]]:
    made = torch.randn(NUMBER, 1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).half().float()
    return [(f"scan {index}", one) for index, one in enumerate(made)]


def every_pair(match: TextMatch, texts: list[str]) -> np.ndarray[Any, Any]:
    """What the authors do: each text with each volume through the gates."""
    found = np.zeros((len(texts), NUMBER))
    with torch.no_grad():
        for i, row in enumerate(match.text_rows(texts)):
            for j, (_, tokens) in enumerate(scans()):
                x, said = tokens, row[None, None]
                for gate in match.local_img_cross_multihead_attention:
                    x, _, said, _ = gate(x, said)
                found[i, j] = float(match.image_latents(x)[0] @ match.text_latents(said[0])[0])
    return found


def test_a_shortlist_of_all_is_every_pair(match: TextMatch) -> None:
    texts = [f"report {index}" for index in range(NUMBER)]
    wanted = every_pair(match, texts)
    store = ScanStore.of(match, scans())
    tokens = torch.cat([one for _, one in scans()]).numpy()
    rows = match.text_rows(texts)
    queries = match.text_latents(rows).detach().numpy()

    def rescore(query: int, chosen: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return gated_scores(match, tokens[chosen], rows[query : query + 1])

    whole = two_stage_scores(store.latents.latents, queries, rescore, NUMBER)
    np.testing.assert_allclose(whole, wanted, atol=1e-5)
    assert (ranks(whole) == ranks(wanted)).all()
    first = queries @ store.latents.latents.T
    assert (ranks(first) != ranks(wanted)).any()  # the gates do change the order
    short = two_stage_scores(store.latents.latents, queries, rescore, 4)
    for row, near, told in zip(short, first, wanted, strict=True):
        chosen = np.argsort(-near)[:4]
        np.testing.assert_allclose(row[chosen], told[chosen], atol=1e-5)
        assert row[chosen].min() > np.delete(row, chosen).max()
    with pytest.raises(ConfigError, match="A shortlist of 0 volumes"):
        two_stage_scores(store.latents.latents, queries, rescore, 0)


def test_scans_are_found_as_every_pair_ranks_them_also_from_the_disk(match: TextMatch, tmp_path: Path) -> None:
    wanted = np.argsort(-every_pair(match, ["a report"])[0])
    store = ScanStore.load(ScanStore.of(match, scans()).save(tmp_path / "store"))
    found = find_scans(match, store, "a report", top=5, shortlist=NUMBER)
    assert [name for name, _ in found] == [f"scan {index}" for index in wanted[:5]]
    assert find_scans(match, store, "a report", top=1, shortlist=1)[0][0] in store.latents.ids
    like = scans_like(store, "scan 3", top=4)
    similar = store.latents.latents @ store.latents.latents[3]
    assert [name for name, _ in like] == [f"scan {index}" for index in np.argsort(-similar)[1:5]]


def test_stores_that_do_not_fit_are_said(match: TextMatch, tmp_path: Path) -> None:
    store = ScanStore.of(match, scans())
    with pytest.raises(DataError, match="no words to look for"):
        find_scans(match, store, " \n")
    with pytest.raises(DataError, match="no scan called 'x'"):
        scans_like(store, "x")
    with pytest.raises(DataError, match="holds no tokens"):
        find_scans(match, ScanStore(store.latents), "a report")
    folder = store.save(tmp_path / "store")
    assert store.tokens is not None
    np.save(folder / "tokens.npy", store.tokens[:3])
    with pytest.raises(DataError, match=r"tokens of 3 scans, but latents of 12"):
        ScanStore.load(folder)
    (folder / "tokens.npy").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no tokens of scans"):
        ScanStore.load(folder)


def test_views_go_to_the_device_of_the_network(match: TextMatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views lie on the CPU, wherever the network is; "meta" stands for a graphics card."""
    seen, tokens = [], scans()[0][1]

    def look(volume: torch.Tensor) -> torch.Tensor:
        seen.append(volume.device.type)
        return tokens

    monkeypatch.setattr(match, "image_tokens", look)
    monkeypatch.setattr(match, "parameters", lambda: iter([torch.empty(1, device="meta")]))
    store = ScanStore.of(match, scans()[:2])
    assert scans_resembling(match, store, scans()[0][1], top=1)[0][1] == pytest.approx(1, abs=1e-5)
    assert seen == ["meta"] * 3


def test_ten_thousand_latents_are_searched_exactly() -> None:
    rng = np.random.default_rng(0)
    store = LatentStore.of([str(n) for n in range(10_000)], rng.standard_normal((10_000, 64), np.float32))
    query = rng.standard_normal(64).astype(np.float32)
    best = np.argsort(-(store.latents @ query))[:10]
    assert [name for name, _ in store.search(query)] == [str(index) for index in best]
    measured = bench.main(scans=200, latent=16, shortlist=4, tokens=2, rounds=2)
    assert set(measured) == {"scans", "latent", "shortlist", "threads", "latents_ms", "gates_ms"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = Dataset(tmp_path_factory.mktemp("chests"), DatasetInfo(name="chests", modality="CT"))
    dataset.save()
    for index, split in enumerate(("train", "train", "train", "val", "val", "val")):
        scan = thorax_ct(index, (20, 24, 24))
        dataset.add_case([scan.volume], None, id=f"case_{index}", split=split, report=scan.report)  # type: ignore[arg-type]
    return dataset


def test_gates_learn_with_the_latents_are_scored_and_searched(cohort: Dataset, tmp_path: Path) -> None:
    small = {
        "method": {"size": "tiny", "window": 3, "heads": (1, 2, 3, 6)},
        "task": {"latent": 8, "gates": 2, "text": {"width": 16, "layers": 1, "heads": 2, "longest": 40}},
        "data": {"size": (32, 48, 48), "workers": 0},
        "optim": {"max_steps": 2, "batch_size": 3},
        "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0},
    }
    run = RunDirectory.create(tmp_path / "run", finetune_config("retrieval", "tiny", cohort.folder, "mg3d", small))
    assert execute(run) == 0, run.error()
    assert '"through_gates"' in run.events_path.read_text()
    metrics = dict(score_split(run.path, cohort.folder, "val").rows)
    assert "gated_text_to_volume_recall_1" in metrics
    assert "text_to_volume_recall_1" in metrics

    table = find(str(run.path), cohort.folder, text=cohort.cases()[0].report, top=3, store=tmp_path / "store")
    assert len(table.rows) == 3
    again = find(str(run.path), cohort.folder, text=cohort.cases()[0].report, top=3, store=tmp_path / "store")
    assert again.rows == table.rows
    assert len(find(str(run.path), cohort.folder, scan="case_0", top=3).rows) == 3
    loaded = load_model(run.path)
    scan = stored_input(cohort, cohort.cases()[2], loaded.profile)
    (itself,) = find_by_scan(loaded, ScanStore.load(tmp_path / "store"), scan, 1)  # seen as it was in training
    assert itself == ("case_2", pytest.approx(1, abs=1e-4))
    drawing = draw(loaded, scan, "findings", {"sentence": 1})
    (picture,) = drawing.placed(list(drawing.frames)[-1])
    seen = np.multiply(picture.geometry.shape, picture.geometry.spacing_mm)
    np.testing.assert_allclose(seen, np.multiply(scan.geometry.shape, scan.geometry.spacing_mm), rtol=1e-5)
    kept = b"".join(file.read_bytes() for file in (tmp_path / "store").iterdir())
    assert cohort.cases()[0].report[:20].encode() not in kept
    with pytest.raises(ConfigError, match=r"Give --text or --scan"):
        find(str(run.path), cohort.folder)
    fewer = Dataset(cohort.folder, cohort.info, cohort.cases()[:2])
    with pytest.raises(DataError, match="made of other scans"):
        store_of(load_model(run.path), fewer, tmp_path / "store")

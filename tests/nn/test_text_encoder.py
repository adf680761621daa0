"""Text models by the same call that loads published ones: made here, saved, loaded offline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from training_backend.config.text import TextConfig
from training_backend.errors import ConfigError, WeightsError
from training_backend.nn.text_encoder import architecture, text_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "nodule", "the", "heart", "is", "large", "."]
TEXTS = ["No nodule.", "The heart is large. The heart is large."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with a WordPiece vocabulary, as transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    tokeniser = transformers.BertTokenizerFast.from_pretrained(folder)
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    transformers.BertModel(settings).save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def states(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).last_hidden_state


def test_a_folder_gives_its_weights_and_its_tokens(folder: Path) -> None:
    model, tokeniser = text_model(TextConfig(source=str(folder)))
    ids, mask = tokeniser.batch(TEXTS)
    assert ids[0].tolist() == [2, 5, 6, 11, 3] + [0] * 7
    assert mask.sum(1).tolist() == [5, 12]
    reference = transformers.BertModel.from_pretrained(folder)
    torch.testing.assert_close(states(model, ids, mask), states(reference, ids, mask))


def test_architecture_and_tokeniser_are_enough_for_a_checkpoint(folder: Path) -> None:
    model, tokeniser = text_model(TextConfig(source=str(folder)))
    kept = TextConfig(source="/gone", architecture=architecture(model), tokeniser=tokeniser.to_json())
    again, reader = text_model(kept)
    again.load_state_dict(model.state_dict())
    ids, mask = tokeniser.batch(TEXTS)
    assert torch.equal(reader.batch(TEXTS)[0], ids)
    torch.testing.assert_close(states(again, ids, mask), states(model, ids, mask))


def test_long_texts_are_cut_before_their_last_mark_and_it_is_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, tokeniser = text_model(TextConfig(source=str(folder), longest=6))
    assert tokeniser.ids(TEXTS[1]) == [2, 7, 8, 9, 10, 3]
    assert tokeniser.ids(f"{TEXTS[1]} No.")[-1] == 3
    assert tokeniser.ids(TEXTS[1]) is tokeniser.ids(TEXTS[1])  # remembered
    assert tokeniser.cut == 2
    assert len(caplog.records) == 1
    assert "A text has 12 tokens, but 6 are read" in caplog.text
    assert "heart" not in caplog.text


def test_no_text_is_longer_than_the_places_of_the_model(folder: Path) -> None:
    _, tokeniser = text_model(TextConfig(source=str(folder), longest=500))
    assert len(tokeniser.ids("no " * 100)) == 32


def test_a_small_model_knows_the_words_of_the_reports() -> None:
    config = TextConfig(width=16, layers=1, heads=2, least_count=1)
    model, tokeniser = text_model(config, ["No left-sided nodule, 3.5 mm.", "Größe normal."])
    ids, mask = tokeniser.batch(["NO LEFT-SIDED NODULE", "größe never-seen"])
    unknown = tokeniser.backend.token_to_id("[UNK]")
    assert unknown not in ids[0].tolist()
    assert (ids[1] == unknown).sum() == 2
    assert states(model, ids, mask).shape == (*ids.shape, 16)
    with pytest.raises(ConfigError, match="no training reports to make a vocabulary"):
        text_model(config, [])


def test_what_is_missing_in_a_folder_is_said(folder: Path, tmp_path: Path) -> None:
    def without(*names: str) -> Path:
        copy = tmp_path / "-".join(names)
        shutil.copytree(folder, copy)
        for name in names:
            for path in copy.glob(name):
                path.unlink()
        return copy

    cases = [
        (without("config.json"), "no config.json"),
        (without("vocab.txt", "tokenizer.json"), "no vocabulary"),
        (without("*.safetensors"), "no safetensors weights"),
    ]
    for place, sentence in cases:
        with pytest.raises(WeightsError, match=sentence):
            text_model(TextConfig(source=str(place)))
    with pytest.raises(WeightsError, match="no folder"):
        text_model(TextConfig(source=str(tmp_path / "nowhere")))


def test_code_of_the_models_authors_is_never_run(folder: Path, tmp_path: Path) -> None:
    import json

    copy = tmp_path / "foreign"
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    settings |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (copy / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    mark = tmp_path / "ran"
    (copy / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        text_model(TextConfig(source=str(copy)))
    assert not mark.exists()


def test_a_tokeniser_of_another_model_is_refused(folder: Path) -> None:
    model, tokeniser = text_model(TextConfig(source=str(folder)))
    small = architecture(model).replace(f'"vocab_size": {len(WORDS)}', '"vocab_size": 7')
    with pytest.raises(WeightsError, match="12 tokens, but the text model only 7"):
        text_model(TextConfig(architecture=small, tokeniser=tokeniser.to_json()))

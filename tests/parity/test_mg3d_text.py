"""Numbers of the published report writer and of the published prompt scores (MG-3D), from fixtures of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from training_backend.nn.report_decoder import ReportWriter, WriterSizes, published, words_loss
from training_backend.nn.text_beam import Beam
from training_backend.nn.text_match import TextMatch

FOLDER = Path(__file__).parents[1] / "fixtures" / "parity" / "mg3d_text"
CLOSE = {"atol": 2e-5, "rtol": 2e-4}


def arrays(name: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / f"{name}_io.npz", allow_pickle=False) as content:
        return {key: torch.from_numpy(np.array(content[key])) for key in content}


def writer() -> ReportWriter:
    weights = published(load_file(FOLDER / "report_lamrg.safetensors"))
    words, width = weights["encoder_decoder.logit.weight"].shape
    sizes = WriterSizes(
        words=words - 1, vision=24, width=width, hidden=32, heads=4, memory_heads=4, slots=12, dropout=0.1
    )
    model = ReportWriter(sizes)
    model.load_state_dict(weights)
    return model.eval()


def test_report_lamrg_teacher_forced() -> None:
    model, given = writer(), arrays("report_lamrg")
    tokens, ids = given["patch_feats"], given["report_ids"]
    out = model(tokens, tokens.mean(1), ids)
    torch.testing.assert_close(out.log_probs, given["log_probs"], **CLOSE)
    torch.testing.assert_close(out.visual_labels, given["visual_labels"], **CLOSE)
    torch.testing.assert_close(out.text_labels, given["text_labels"], **CLOSE)
    torch.testing.assert_close(out.image, given["z_img"], **CLOSE)
    torch.testing.assert_close(out.text, given["z_txt"], **CLOSE)
    torch.testing.assert_close(words_loss(out.log_probs, ids), given["loss_nll"], **CLOSE)
    assert torch.equal(model.memory, given["memory"])


def test_report_lamrg_beams() -> None:
    model, given = writer(), arrays("report_lamrg")
    tokens = given["patch_feats"]
    ids = model.write(tokens, tokens.mean(1), Beam(size=3, longest=given["beam3_ids"].shape[1]))
    assert torch.equal(ids, given["beam3_ids"])


def test_ctclip_score() -> None:
    import transformers

    given, weights = arrays("ctclip_score"), load_file(FOLDER / "ctclip_score.safetensors")
    words, width = weights["text_transformer.embeddings.word_embeddings.weight"].shape
    places = weights["text_transformer.embeddings.position_embeddings.weight"].shape[0]
    settings = transformers.BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=places,
    )
    tokens = given["image_tokens"].flatten(1, 3)
    model = TextMatch(None, None, transformers.BertModel(settings), None, width, tuple(tokens.shape[1:]), gates=2)
    found = model.load_state_dict(weights, strict=False)
    assert found.missing_keys == []
    unread = (".fc1.", "latent_extra", "position_ids")
    assert [name for name in found.unexpected_keys if not any(part in name for part in unread)] == []
    model.eval()
    with torch.no_grad():
        rows = model.read(given["input_ids"], given["attention_mask"])
        torch.testing.assert_close(model.scores(tokens, rows)[0], given["scores"], **CLOSE)
        torch.testing.assert_close(model.scores(tokens, rows)[0].softmax(0), given["softmax"], **CLOSE)
        said, seen = rows[None], tokens
        for gate in model.local_img_cross_multihead_attention:
            seen, _, said, _ = gate(seen, said)
        torch.testing.assert_close(model.image_latents(seen), given["image_latents"], **CLOSE)
        torch.testing.assert_close(model.text_latents(said)[0], given["text_latents"], **CLOSE)

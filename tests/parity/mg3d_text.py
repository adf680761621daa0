"""The report writer and the prompt scores of MG-3D's downstream folders."""

from __future__ import annotations

import re

import torch

from tests.parity.cases import Case, Check
from training_backend.nn.report_decoder import ReportWriter, WriterSizes, published, words_loss
from training_backend.nn.text_beam import Beam
from training_backend.nn.text_match import TextMatch

OF_NO_SIZE = {"bos_idx": 0, "eos_idx": 0, "pad_idx": 0, "use_bn": 0, "sample_method": "beam_search", "temperature": 1.0}
OF_NO_SIZE |= {"sample_n": 1, "group_size": 1, "output_logsoftmax": 1, "decoding_constraint": 0, "block_trigrams": 1}
OF_NO_SIZE |= {"dataset_name": "ctrg", "label_loss": False, "rank_loss": False, "logit_layers": 1}
"""Settings of the writer that have these values in every case that the suite understands."""
SIZES = {"d_model", "d_ff", "d_vf", "num_slices", "num_labels", "num_heads", "num_memory_heads", "num_slots", "dropout"}
SIZES |= {"drop_prob_lm", "max_seq_length", "beam_size", "num_layers"}


def check_writer(case: Case) -> None:
    config = case.config
    fixed = {name: value for name, value in config.items() if name not in SIZES}
    assert fixed == OF_NO_SIZE, "settings that the suite does not understand"
    weights = published(case.weights())
    assert weights["encoder_decoder.logit.weight"].shape[0] == case.entry["vocab_len"] + 1
    model = ReportWriter(
        WriterSizes(
            words=case.entry["vocab_len"],
            vision=config["d_vf"],
            width=config["d_model"],
            hidden=config["d_ff"],
            heads=config["num_heads"],
            memory_heads=config["num_memory_heads"],
            slots=config["num_slots"],
            labels=config["num_labels"],
            layers=config["num_layers"],
            dropout=config["dropout"],
        )
    )
    model.load_state_dict(weights)
    model.eval()
    tokens, ids = case.tensor("patch_feats"), case.tensor("report_ids")
    with torch.no_grad():
        out = model(tokens, tokens.mean(1), ids)
        beams = model.write(tokens, tokens.mean(1), Beam(size=config["beam_size"], longest=config["max_seq_length"]))
    case.compare("log_probs", out.log_probs)
    case.compare("visual_labels", out.visual_labels)
    case.compare("text_labels", out.text_labels)
    case.compare("z_img", out.image)
    case.compare("z_txt", out.text)
    case.compare("loss_nll", words_loss(out.log_probs, ids))
    case.compare("memory", model.memory)
    (written,) = (name for name in case.arrays if re.fullmatch(r"beam\d+_ids", name))
    case.compare(written, beams, atol=0, rtol=0)
    said = case.arrays["report_mask"].astype(bool)
    assert (said[:, 1:] == ((ids[:, 1:] > 0) | (ids[:, :-1] > 0)).numpy()).all()  # the mask that the loss makes itself
    kept = case.arrays["memory_mask"]  # of the slots, which the reference hands on and never looks at
    assert (kept[:, : config["num_slots"]] == 1).all()
    assert not kept[:, config["num_slots"] :].any()


def check_scores(case: Case) -> None:
    import transformers

    config = case.config
    assert set(config) == {"dim", "vocab", "text_len", "bert_layers", "bert_heads"}
    weights = case.weights()
    assert case.arrays["input_ids"].shape[1] == config["text_len"]
    settings = transformers.BertConfig(
        vocab_size=config["vocab"],
        hidden_size=config["dim"],
        num_hidden_layers=config["bert_layers"],
        num_attention_heads=config["bert_heads"],
        intermediate_size=4 * config["dim"],
        max_position_embeddings=len(weights["text_transformer.embeddings.position_embeddings.weight"]),
    )
    tokens = case.tensor("image_tokens").flatten(1, 3)
    text = transformers.BertModel(settings)
    model = TextMatch(None, None, text, None, config["dim"], (tokens.shape[1], tokens.shape[2]), gates=2)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == []
    assert [name for name in unexpected if not re.search(r"\.fc1\.|latent_extra|position_ids", name)] == []
    model.eval()
    with torch.no_grad():
        rows = model.read(case.tensor("input_ids"), case.tensor("attention_mask"))
        scores = model.scores(tokens, rows)
        said, seen = rows.expand(len(tokens), -1, -1), tokens
        for gate in model.local_img_cross_multihead_attention:
            seen, _, said, _ = gate(seen, said)
        case.compare("image_latents", model.image_latents(seen))
        case.compare("text_latents", _alone(model.text_latents(said)))
    case.compare("scores", _alone(scores))
    case.compare("softmax", _alone(scores.softmax(1)))


def _alone(values: torch.Tensor) -> torch.Tensor:
    """The values of the only volume without their first axis, or of several with it."""
    return values[0] if len(values) == 1 else values


CHECKS: dict[str, Check] = {
    r"^downstream/CTRG models\.lamrg\.LAMRGModel_VoCo": check_writer,
    r"^downstream/CT-RATE CT_CLIP/ct_clip/ct_clip\.CTCLIP\.forward$": check_scores,
}

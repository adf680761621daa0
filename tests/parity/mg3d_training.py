"""The pre-training network of MG-3D: passes, losses and gradients, and its gates by themselves."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tests.parity.cases import Case, Check
from training_backend.nn.gates import POOL_HEADS, OneWayGate, SentenceGates
from training_backend.nn.mg3d import LAYERS, Mg3d, Routing
from training_backend.nn.mg3d_encoders import TOKEN, SwinVision
from training_backend.nn.mg3d_heads import block_mask
from training_backend.nn.reports import Reports
from training_backend.weights.mg3d import UNREAD, canonical

ROUTINGS: dict[str, Routing] = {
    r'as committed: task string "\w+" falls into the token/MLM branch': "words",
    r'routed as task "mim": sentence branch': "sentences",
}
"""How voxels are drawn, by a pattern of the variant that a case names."""
KNOWN = {"hidden", "heads", "mlp_ratio", "text_len", "vocab", "lm_layers", "lm_heads", "num_top", "embed", "swin_heads"}
KNOWN |= {"window", "depths", "size", "ntok_fc", "pool_heads"}
RATIO, WHOLES = 0.5, 0.1
"""Share of hidden blocks, and weight of the third pass."""


def check_pretraining(case: Case) -> None:
    network, reports = _network(case), _reports(case)
    volume = case.tensor("image").transpose(1, 2)
    hidden = case.tensor("masked_voxels")
    d, h, w = (side // TOKEN for side in case.config["size"])
    grid = (d, h, w)
    drawn = block_mask(tuple(hidden.shape), 16, RATIO, torch.Generator().manual_seed(0))
    assert (drawn.shape, int(drawn.sum())) == (hidden.shape, int(hidden.sum()))
    said, tokens = network.read(reports), network.look(volume)
    words = network.words(said, reports, tokens, grid)
    voxels = network.voxels(volume, hidden, RATIO, said, reports, grid)
    wholes = network.wholes(tokens, said, reports, grid)
    total = words.words + words.sentences + voxels.loss + WHOLES * wholes.loss
    total.backward()
    actual = {
        "loss_total": total,
        "loss_sen_mlm": words.words + words.sentences,
        "loss_mlm_ce": words.words,
        "loss_sal": words.sentences,
        "loss_mim": voxels.loss,
        "loss_local_itc": wholes.loss,
        "loss_cml": wholes.cross,
        "loss_dcl": wholes.aggregated,
        "loss_ssm": wholes.patients,
        "mlm_logits": words.logits,
        "full_img_feats": tokens,
        "full_text_feats": said.embedded,
        "mim_image_feats": voxels.tokens,
        "mim_recon_stride2": voxels.drawn[..., ::2, ::2, ::2],
        "itc_cross_logits": wholes.cross_logits,
        "dcl_logits": wholes.aggregated_logits,
        "itc_mm_cls": wholes.seen,
        "itc_uni_cls": wholes.own,
        "itc_agg_cls": wholes.gathered,
    }
    for patient, present in enumerate(reports.present):
        actual[f"sen_wise_image_feats_{patient}"] = wholes.sentences[patient, present][None]
        actual[f"uni_sen_feats_{patient}"] = said.alone[patient, present][None]
    assert {"loss_total", "loss_sen_mlm", "loss_mim", "loss_local_itc"} <= set(case.arrays)
    for name in set(actual) & set(case.arrays):  # of a single patient the reference has no comparison of patients
        case.compare(name, actual[name])
    _check_gradients(case, network)


def _check_gradients(case: Case, network: Mg3d) -> None:
    """Every parameter that learns in the reference learns here, and no other; with gradients of the same size.

    What the reference leaves out for a single patient has gradients of zero here.
    """
    found = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    names = [str(name) for name in case.arrays["gradnorm_names"]]
    assert set(names) <= set(found)
    assert not [name for name in set(found) - set(names) if found[name].any()]
    case.compare("gradnorm_values", torch.stack([found[name].norm() for name in names]))
    for name in case.arrays:
        if name.startswith("grad__"):
            case.compare(name, found[name.removeprefix("grad__")])


def _network(case: Case) -> Mg3d:
    import transformers

    config = case.config
    assert set(config) <= KNOWN, f"settings that the suite does not know: {set(config) - KNOWN}"
    assert (config["num_top"], config["pool_heads"], config["depths"]) == (LAYERS, POOL_HEADS, [2, 2, 2, 2])
    variant = str(case.entry["variant"])
    routing = next((routing for pattern, routing in ROUTINGS.items() if re.search(pattern, variant)), None)
    if routing is None:
        pytest.fail(f"a variant that the suite does not understand: {variant!r}")
    settings = transformers.BertConfig(
        vocab_size=config["vocab"],
        hidden_size=config["hidden"],
        num_hidden_layers=config["lm_layers"],
        num_attention_heads=config["lm_heads"],
        intermediate_size=config["mlp_ratio"] * config["hidden"],
        max_position_embeddings=config["text_len"],
    )
    d, h, w = (side // TOKEN for side in config["size"])
    vision = SwinVision(1, config["embed"], window=(config["window"],) * 3, heads=config["swin_heads"])
    network = Mg3d(vision, transformers.BertModel(settings), (d, h, w), routing=routing)
    own = {canonical(name): name for name in network.state_dict()}
    given = {canonical(name): tensor for name, tensor in case.weights().items()}
    unread = {name for name in given if re.fullmatch(UNREAD, name)}
    assert set(given) - unread == {name for name in own if not re.fullmatch(UNREAD, name)}
    network.load_state_dict({own[name]: given[name] for name in set(given) & set(own)}, strict=False)
    return network.eval()


def _reports(case: Case) -> Reports:
    counts = case.entry["sentences_per_patient"]
    alone = [[case.tensor(f"sen_txt_ids_{i}_{j}")[0] for j in range(count)] for i, count in enumerate(counts)]
    shape = (len(alone), max(counts), max(len(ids) for patient in alone for ids in patient))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for i, patient in enumerate(alone):
        for j, sentence in enumerate(patient):
            ids[i, j, : len(sentence)], mask[i, j, : len(sentence)] = sentence, 1
    return Reports(
        ids=case.tensor("text_ids"),
        masked=case.tensor("text_ids_mlm"),
        labels=case.tensor("text_labels_mlm"),
        mask=case.tensor("text_masks"),
        sentence=case.tensor("sentence_index").clamp_min(0),
        alone=ids,
        alone_mask=mask,
    )


def check_gates(case: Case) -> None:
    """Gates of both published kinds; the two-way attention that nothing calls is two one-way ones."""
    config, state = case.config, case.weights()
    assert set(config) == {"dim", "text_tokens", "image_tokens", "sentences"}
    grid, width = (config["image_tokens"], 1, 1), config["dim"]
    for kind in ("swin", "unet"):
        learnt = kind == "unet"
        words = SentenceGates(width, first="weigh" if learnt else "mean", grid=grid)
        scans = SentenceGates(
            width, first="pool" if learnt else "mean", second="weigh" if learnt else "mean", grid=grid
        )
        text, image, sentences = (case.tensor(f"{kind}_{name}")[None] for name in ("text", "img", "sen"))
        for name, gates, rows in (("mlm", words, (text, image)), ("mim", scans, (image, sentences))):
            missing, unexpected = gates.load_state_dict(_part(state, f"{kind}.{name}."), strict=False)
            assert missing == []
            assert all(part.startswith(("fc1", "fc2")) for part in unexpected)  # of sums that are not learnt
            first, p2, second, p1 = gates(*rows)
            outputs = ("text_out", "img_out") if name == "mlm" else ("img_out", "sen_out")
            for what, value in zip((*outputs, "p1", "p2"), (first, second, p1, p2), strict=True):
                case.compare(f"{kind}_{name}_{what}", value[0])
        one = OneWayGate(width)
        one.load_state_dict(_part(state, f"{kind}.uni."))
        out, weights = one(sentences, image[:, :1])
        case.compare(f"{kind}_uni_out", out[0])
        case.compare(f"{kind}_uni_p", weights[0])
        _check_two_ways(case, kind, _part(state, f"{kind}.loc."), image, sentences)


def _check_two_ways(case: Case, kind: str, state: dict[str, Tensor], image: Tensor, sentences: Tensor) -> None:
    ways = {1: (sentences, image, "key2", "value2", "query1"), 2: (image, sentences, "key1", "value1", "query2")}
    for number, (rows, other, *names) in ways.items():
        gate = OneWayGate(image.shape[-1])
        renamed = dict(zip(("key1", "value1", "query2"), names, strict=True))
        parts = {f"{own}.{end}": state[f"{name}.{end}"] for own, name in renamed.items() for end in ("weight", "bias")}
        gate.load_state_dict(parts)
        case.compare(f"{kind}_loc_{number}", gate(rows, other)[0][0])


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


CHECKS: dict[str, Check] = {
    r"^mg3d\.models\.mg3d_module\.MG3DTransformerSS\.forward \(sen_mlm \+ swin_unetr_mim \+ local_itc\), eval mode$": (
        check_pretraining
    ),
    r"^local_attention\.py": check_gates,
}

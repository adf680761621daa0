"""Time and memory of one pre-training step of `mg3d`, beside a plain step written as the published code is described.

The plain step asks the text model three times (hidden words, the whole report, and the whole report again) and for
every sentence alone, has MONAI's Swin transformer with the merging order of the weights, multiplies gates and values
into arrays [text, places, channels] before it takes their means, goes through sentences patient by patient, and draws
voxels with the last convolution at full size. Parts of the published network that no loss reads are left out on both
sides. Each side runs in fresh child processes, in turn, so that both meet the same load of the machine; processor time
is told too, since it does not count waiting for other programs.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from training_backend.bench.step import child, peak_mb, summary, timed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training_backend.nn.mg3d import Mg3d
    from training_backend.nn.reports import Reports

Side = Literal["ours", "plain", "idle", "query"]

HEADS = (3, 6, 12, 24)
RATIO, WHOLES = 0.5, 0.1
"""Share of hidden blocks, and weight of the third pass."""
TOKENS = 64
"""Of a report."""
WORDS, LAYERS = 2000, 2
"""Vocabulary and layers of the text model."""
RECORDED = {"reference_s": 24.0, "reference_mb": 7240}
"""Of the authors' code with the gaps of its published form bridged, on another, loaded machine: a hint, no comparison.
It holds parts that no loss reads, 125.2 M parameters in all."""


def main(
    side: int = 64, steps: int = 2, rounds: int = 1, threads: int = 1, width: int = 48, query: bool = True
) -> dict[str, object]:
    """Seconds per step and peak memory of ours and of the plain step on the CPU, and their ratios.

    Two volumes whose reports have three and four sentences, 64 tokens each; text model of two layers and 2000 words.

    Args:
        side: voxels of a volume along each axis.
        steps: timed steps of one process, after one that is not.
        rounds: processes per side; the median of all steps counts, and the largest memory.
        threads: of one process.
        width: channels of the first map; 48 is B.
        query: also time the view that looks for words in a scan, the first time and again.
    """
    rows: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        for one, found in rows.items():
            found.append(child(__name__, one, width, side, steps, threads))
    table: dict[str, object] = {"threads": threads, **summary(rows), "recorded": RECORDED}
    table["idle_mb"] = child(__name__, "idle", width, side, 1, 1)["mb"]
    if query:
        table["query"] = child(__name__, "query", width, side, 5, threads)
    return table


def measure(kind: Side, width: int, side: int, steps: int, threads: int) -> None:
    """Body of a child: what it measured and the peak memory (MB), to standard output as JSON."""
    import torch

    torch.set_num_threads(threads)
    row: dict[str, Any] = {}
    if kind != "idle":
        network = made(width, side)
        volume = torch.rand(2, 1, side, side, side, generator=torch.Generator().manual_seed(1))
        if kind == "query":
            row = _queried(network, volume[:1], steps)
        else:
            row = timed(network, stepping(network, kind), volume, steps)
    sys.stdout.write(json.dumps({**row, "mb": peak_mb("cpu")}))


def made(width: int = 48, side: int = 64, heads: tuple[int, ...] = HEADS, window: int = 7) -> Mg3d:
    """Our network with fixed fresh weights, in training; a token is as wide as the text model."""
    import torch
    import transformers

    from training_backend.nn.mg3d import Mg3d
    from training_backend.nn.mg3d_encoders import TOKEN, SwinVision

    torch.manual_seed(0)
    hidden = 16 * width
    settings = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,  # ours keeps a frozen model from dropping, the plain step does not
        attention_probs_dropout_prob=0.0,
    )
    grid = (side // TOKEN,) * 3
    vision = SwinVision(1, width, window=(window,) * 3, heads=heads)
    return Mg3d(vision, transformers.BertModel(settings), grid, all_padding=True).train()


def reports(sentences: tuple[int, ...] = (3, 4), length: int = TOKENS) -> Reports:
    """Reports of random tokens with so many sentences of twelve tokens each, a sixth of them hidden."""
    import torch

    from training_backend.nn.reports import IGNORED, Reports

    generator = torch.Generator().manual_seed(2)
    each, batch = 12, len(sentences)
    ids = torch.randint(5, WORDS, (batch, length), generator=generator)
    sentence = torch.zeros_like(ids)
    alone = torch.zeros(batch, max(sentences), each + 2, dtype=torch.long)
    alone_mask = torch.zeros_like(alone)
    for row, count in enumerate(sentences):
        for number in range(count):
            places = slice(1 + number * each, 1 + (number + 1) * each)
            sentence[row, places] = number + 1
            alone[row, number] = torch.tensor([2, *ids[row, places].tolist(), 3])
            alone_mask[row, number] = 1
    hidden = (torch.rand(ids.shape, generator=generator) < 1 / 6) & (sentence > 0)
    return Reports(
        ids=ids,
        masked=ids.masked_fill(hidden, 4),
        labels=ids.masked_fill(~hidden, IGNORED),
        mask=(torch.arange(length) < max(sentences) * each + 2).long().repeat(batch, 1),
        sentence=sentence,
        alone=alone,
        alone_mask=alone_mask,
    )


def stepping(network: Mg3d, kind: Side) -> Callable[[Tensor, int], float]:
    """One training step of either side; both start from the weights of `network`."""
    import torch

    from training_backend.config import OptimConfig
    from training_backend.engine.optim import make_optimizer
    from training_backend.nn.mg3d_heads import block_mask

    said = reports()
    loss_of: Callable[[Any, Tensor, Tensor, Reports], Tensor] = our_loss
    optimizer: torch.optim.Optimizer
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if kind == "plain":
        _straighten(network)
        loss_of = plain_loss
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(learning, lr=1e-5, weight_decay=1e-8, foreach=False)
    else:
        optimizer = make_optimizer(network, OptimConfig(lr=1e-5, weight_decay=1e-8, betas=(0.9, 0.999)))

    def step(volume: Tensor, index: int) -> float:
        hidden = block_mask(volume.shape[2:], 16, RATIO, torch.Generator().manual_seed(index))
        loss = loss_of(network, volume, hidden, said)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def our_loss(network: Mg3d, volume: Tensor, hidden: Tensor, said: Reports) -> Tensor:
    """The loss of a step by the product's network, as `methods.mg3d` puts it together."""
    grid = network.grid
    texts, tokens = network.read(said), network.look(volume)
    words = network.words(texts, said, tokens, grid)
    voxels = network.voxels(volume, hidden, RATIO, texts, said, grid)
    wholes = network.wholes(tokens, texts, said, grid)
    return words.words + words.sentences + voxels.loss + WHOLES * wholes.loss


def plain_loss(network: Any, volume: Tensor, hidden: Tensor, said: Reports) -> Tensor:
    """The loss of a step on the straight way: three passes one after the other, patient by patient."""
    import torch
    import torch.nn.functional as F

    # Words.
    text, image = _text(network, network.language_encoder.embeddings(said.masked), said), _image(network, volume)
    tokens = image
    for gate in network.local_text_cross_multihead_attention:
        text, image = plain_gates(gate, text, image)
    h = network.mlm_head.transformed(text)
    logits = network.mlm_head.logits(h)
    total: Tensor = F.cross_entropy(logits.view(-1, logits.shape[-1]), said.labels.view(-1), ignore_index=-100)
    with torch.no_grad():
        embedded = network.language_encoder.embeddings(said.ids)
    apart = torch.zeros(())
    for mine, theirs in zip(_sentences(h, said), _sentences(embedded, said), strict=True):
        for k in range(len(mine)):
            one, other = network.mlm_head.fc(mine[k : k + 1]), network.uni_emd_sen(theirs[k : k + 1])
            apart = apart + (1 - F.cosine_similarity(one, other, dim=-1, eps=1e-6)).sum()
    total = total + 0.1 * apart / len(volume)
    # Voxels.
    with torch.no_grad():
        rows = _sentences(_text(network, embedded, said), said)
    image = _image(network, volume * ~hidden)
    drawn_from = []
    for b, x in enumerate(rows):
        y, x = image[b : b + 1], x[None]
        for gate in network.local_img_cross_multihead_attention:
            y, x = plain_gates(gate, y, x)
        drawn_from.append(y)
    grid = network.grid
    drawn = network.mim_swin_unter_head.conv(torch.cat(drawn_from).transpose(1, 2).unflatten(2, grid))
    total = total + ((drawn * hidden - volume * hidden) ** 2).mean() / RATIO
    # Wholes.
    with torch.no_grad():
        rows = _sentences(_text(network, embedded, said), said)
    return total + WHOLES * _plain_wholes(network, tokens, rows, said)


def plain_gates(gate: Any, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Gated rows of `first` [B, I, E] and `second` [B, S, E], with all products of gates and values built."""
    import torch

    scale = math.sqrt(first.shape[-1])
    p1 = torch.sigmoid(gate.query2(second) @ gate.key1(first).transpose(1, 2) / scale)
    p2 = torch.sigmoid(gate.query1(first) @ gate.key2(second).transpose(1, 2) / scale)
    v1, v2 = gate.value1(first), gate.value2(second)
    one = torch.stack([p2[:, :, s, None] * v1 for s in range(second.shape[1])])  # [S, B, I, E]
    other = torch.stack([p1[:, :, i, None] * v2 for i in range(first.shape[1])])  # [I, B, S, E]
    return one.mean(0), other.mean(0)


def _plain_wholes(network: Any, tokens: Tensor, rows: list[Tensor], said: Reports) -> Tensor:
    import torch
    import torch.nn.functional as F

    grid = network.grid
    projected = network.multi_modal_vision_proj(tokens) + network.modality_type_embeddings.weight[1]
    seen, own, images, summaries, short, alone = ([] for _ in range(6))  # type: ignore[var-annotated]
    for b, sentences in enumerate(rows):
        x, y = sentences[None], projected[b : b + 1]
        own_text, own_image = network.uni_global_text_attention(x), network.uni_modal_vision_pooler(y, grid)
        for gate in network.local_img_cross_multihead_attention:
            y, x = plain_gates(gate, y, x)
        seen_image = network.multi_modal_vision_pooler(y, grid)
        seen.append(torch.cat([network.multi_global_text_attention(x), seen_image], dim=-1))
        own.append(torch.cat([own_text, own_image], dim=-1))
        images.append(seen_image)
        x, summary = sentences, own_image
        for gate in network.agg_img_cross_attention:
            found = []
            for k in range(len(x)):
                open_ = torch.sigmoid(gate.query2(summary) @ gate.key1(x[k : k + 1]).T / math.sqrt(x.shape[-1]))
                found.append(open_ * gate.value1(x[k : k + 1]))
            x = torch.cat(found)
            summary = torch.tanh(network.multi_modal_agg_vision_pooler.dense(x.mean(0, keepdim=True)))
        summaries.append(summary)
        short.append(torch.cat([network.multi_modal_sen_vision_pooler(x[k : k + 1]) for k in range(len(x))]))
        with torch.no_grad():
            texts = [ids[mask > 0] for ids, mask in zip(said.alone[b], said.alone_mask[b], strict=True)]
            alone.append(
                torch.stack([network.language_encoder.embeddings(ids[None])[0].mean(0) for ids in texts if len(ids)])
            )
    total = _contrast(*network.itc_cross_head(torch.cat(seen), torch.cat(own)))
    total = total + _contrast(*network.itc_agg_head(torch.cat(images), torch.cat(summaries)))
    matched, pairs = torch.zeros(()), 0
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            wanted = F.cosine_similarity(alone[i][:, None], alone[j][None], dim=-1)
            shown = F.cosine_similarity(short[i][:, None], short[j][None], dim=-1)
            same, other = (wanted >= 0.9).float(), (wanted <= 0.6).float()
            matched, pairs = matched + (shown * (same + other) - wanted * same).abs().mean(), pairs + 1
    return total + matched / (pairs + 1e-6)


def _contrast(first: Tensor, second: Tensor) -> Tensor:
    import torch
    import torch.nn.functional as F

    logits = first @ second.T / 0.1
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def _text(network: Any, embedded: Tensor, said: Reports) -> Tensor:
    """Layers of the text model one after the other, then the projection."""
    x, mask = embedded.detach(), (1.0 - said.mask[:, None, None].float()) * -1e9
    for layer in network.language_encoder.encoder.layer:
        found = layer(x, mask)
        x = found[0] if isinstance(found, tuple) else found
    projected: Tensor = network.multi_modal_language_proj(x) + network.modality_type_embeddings.weight[0]
    return projected


def _image(network: Any, volume: Tensor) -> Tensor:
    tokens = network.straight(volume, normalize=True)[-1].flatten(2).transpose(1, 2)
    projected: Tensor = network.multi_modal_vision_proj(tokens) + network.modality_type_embeddings.weight[1]
    return projected


def _sentences(features: Tensor, said: Reports) -> list[Tensor]:
    """Means [S, E] of the tokens of each sentence of each patient."""
    import torch

    return [
        torch.stack([features[b][numbers == k].mean(0) for k in range(1, int(numbers.max()) + 1)])
        for b, numbers in enumerate(said.sentence)
    ]


def _straighten(network: Any) -> None:
    """Give `network` MONAI's transformer in place of its own."""
    from training_backend.bench.voco_step import plain_swin

    heads = tuple(network.vision_encoder.stage(i).blocks[0].attn.heads for i in range(4))
    network.straight = plain_swin(network.vision_encoder, heads).train()
    network.vision_encoder = None
    network.language_encoder.train()


def _queried(network: Mg3d, volume: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds from words to the heat map of a scan: the first time, and the fastest once the scan is known."""
    import torch

    from training_backend.config.text import TextConfig
    from training_backend.methods.mg3d import METHOD, Mg3dConfig
    from training_backend.nn.text_encoder import text_model

    words = ["There is a nodule in the left upper lobe.", "No pleural effusion.", "The heart is enlarged."]
    network.tokeniser, network.settings = text_model(TextConfig(width=32), words)[1], Mg3dConfig()
    network.eval()
    view = next(view for view in METHOD.views if view.name == "query")
    spent = []
    with torch.inference_mode():
        for index in range(repeats + 1):
            options = view.options.parse({"text": words[index % len(words)]})
            start = time.perf_counter()
            list(view.draw(network, volume, options, torch.Generator()))
            spent.append(round(time.perf_counter() - start, 4))
    return {"first_s": spent[0], "known_s": min(spent[1:]), "known_slowest_s": max(spent[1:])}

"""What a user would write in place of this project: a plain MONAI U-Net for the left atria, in one script.

Half resolution, crops of 80 x 64 x 40 voxels, flips, Dice plus cross-entropy, AdamW, polynomial decay, 16-32-64-128
channels with the two residual units of MONAI's tutorials. It uses nothing of this project, and trains for a given time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

CROP = (80, 64, 40)
"""Voxels along the file's (x, y, z)."""


def main(
    data: Path,
    output: Path,
    cases: tuple[str, ...] = (),
    budget_s: float = 300,
    seed: int = 0,
    threads: int = 1,
    residual_units: int = 0,
    clock: Literal["wall", "processor"] = "wall",
) -> dict[str, Any]:
    """Train for `budget_s` seconds and write a label map (z, y, x) of every validation case at full resolution.

    Args:
        data: folder with the .h5 files, train.list and val.list.
        output: folder for ``ID.npy``.
        cases: training ids; empty takes all of train.list.
        budget_s: seconds from the first step to the end of training.
        seed: of weights and crops.
        threads: of PyTorch.
        clock: whose seconds count: those of the wall, or those that the processor worked for this process.
        residual_units: of MONAI's U-Net; 0, its default, takes about three times as many steps in the same time as 2.

    Returns:
        `steps`, `seconds`, `loss` (mean of the last 50 steps).
    """
    import torch
    from monai.losses.dice import DiceCELoss
    from monai.networks.nets.unet import UNet
    from monai.utils.misc import set_determinism

    torch.set_num_threads(threads)
    set_determinism(seed)
    chosen = cases or tuple((data / "train.list").read_text().split())
    batches = _batches([_half(*_read(data / f"{case}.h5")) for case in chosen], seed)
    network = UNet(3, 1, 2, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=residual_units)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    losses: list[float] = []
    now = time.monotonic if clock == "wall" else time.process_time
    start = now()
    while (done := (now() - start) / budget_s) < 1:
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - done) ** 0.9
        batch = next(batches)
        loss = loss_of(network(batch["image"]), batch["label"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    seconds = now() - start
    _predict(network.eval(), data, output)
    return {"steps": len(losses), "seconds": seconds, "loss": sum(losses[-50:]) / len(losses[-50:])}


def _read(path: Path) -> tuple[Any, Any]:
    """Image [1, x, y, z] of zero mean and unit variance, and label as the file has it."""
    import h5py
    import torch

    with h5py.File(path) as file:
        image = torch.from_numpy(file["image"][:])[None].float()
        label = torch.from_numpy(file["label"][:])[None].float()
    return (image - image.mean()) / image.std(), label


def _half(image: Any, label: Any) -> dict[str, Any]:
    import torch.nn.functional as F

    small = F.interpolate(image[None], scale_factor=0.5, mode="trilinear")[0]
    return {"image": small, "label": F.interpolate(label[None], size=small.shape[1:], mode="nearest")[0]}


def _batches(volumes: list[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Batches of two random crops without end."""
    import torch
    from monai.data.dataloader import DataLoader
    from monai.data.dataset import CacheDataset
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld, SpatialPadd
    from monai.transforms.spatial.dictionary import RandFlipd
    from monai.transforms.utility.dictionary import FgBgToIndicesd

    keys = ("image", "label")
    transform = Compose(
        [
            SpatialPadd(keys, CROP),
            FgBgToIndicesd("label"),
            RandCropByPosNegLabeld(
                keys, "label", CROP, num_samples=1, fg_indices_key="label_fg_indices", bg_indices_key="label_bg_indices"
            ),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    )
    transform.set_random_state(seed)
    dataset = CacheDataset(volumes, transform, progress=False)
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from DataLoader(dataset, batch_size=2, shuffle=True, generator=generator)


def _predict(network: Any, data: Path, output: Path) -> None:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from monai.inferers.utils import sliding_window_inference

    output.mkdir(parents=True, exist_ok=True)
    for case in (data / "val.list").read_text().split():
        image, label = _read(data / f"{case}.h5")
        with torch.inference_mode():
            half = _half(image, label)["image"]
            logits = sliding_window_inference(half[None], CROP, 2, network, overlap=0.5, mode="gaussian")
            full = F.interpolate(torch.as_tensor(logits), size=image.shape[1:], mode="trilinear")
        labels = full.argmax(1)[0].numpy().astype(np.uint8)
        np.save(output / f"{case}.npy", labels.transpose(2, 1, 0))

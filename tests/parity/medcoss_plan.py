"""Which cases a buffer keeps, and learning rates, against the reference."""

from __future__ import annotations

import numpy as np

from tests.parity.cases import Case, Check
from training_backend.config import OptimConfig
from training_backend.data.rehearsal import choose, nearest
from training_backend.engine.schedule import learning_rate, lr_at_epoch


def check_buffer(case: Case) -> None:
    """Cases from given clusters, and as many clusters and cases as the shares ask for."""
    config = case.config
    features, labels, centres = (np.array(case.arrays[name]) for name in ("features", "labels", "centers"))
    assert len(features) == config.pop("N")
    count, per_cluster = config.pop("num_clusters"), config.pop("per_cluster")
    selected = nearest(features, labels, centres, per_cluster)
    case.compare("selected", selected, atol=0, rtol=0)
    shares, ratio = config.pop("num_center"), config.pop("buffer_ratio")
    assert config.pop("file_name") == f"2D_xray_{shares}_{ratio}_kmean.json"  # of the authors' list; ours is a folder
    assert not config
    own = choose(features, "kmeans", ratio, shares)
    assert own.centres.shape == (count, features.shape[1])
    sizes = np.minimum(np.bincount(own.labels, minlength=count), per_cluster)
    assert np.bincount(own.labels[own.indices], minlength=count).tolist() == sizes.tolist()


def check_schedules(case: Case) -> None:
    """Of pre-training by the fraction of an epoch, and of fine-tuning by whole epochs."""
    config = case.config
    lr, warmup, epochs = config.pop("lr"), config.pop("warmup"), config.pop("epochs")
    assert not config
    tolerance = case.entry["tolerance"]["atol"]
    expected = case.arrays["lr_cosine"]
    case.compare("lr_cosine", [lr_at_epoch(epoch, lr, 0.0, warmup, epochs) for epoch in case.arrays["epoch"]])
    per_epoch = 100
    cosine = OptimConfig(lr=lr, epochs=epochs, warmup=warmup / epochs, warmup_start="zero")
    found = [
        learning_rate(round(epoch * per_epoch), epochs * per_epoch, cosine)
        if _whole(epoch * per_epoch)
        else expected[i]
        for i, epoch in enumerate(case.arrays["epoch"])
    ]
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
    assert sum(_whole(epoch * per_epoch) for epoch in case.arrays["epoch"]) > 5
    poly = OptimConfig(lr=lr, epochs=epochs, warmup=0.0, schedule="poly", lr_per_epoch=True)
    steps = [learning_rate(epoch * per_epoch + per_epoch // 2, epochs * per_epoch, poly) for epoch in range(epochs)]
    case.compare("lr_poly", steps)


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-9


CHECKS: dict[str, Check] = {"kmeans_buffer": check_buffer, "schedules": check_schedules}

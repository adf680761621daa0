"""What tests of loaders share: all batches of one, and whether two are the same."""

from __future__ import annotations

import torch

EVERYTHING = {"flip": (0.5, 0.5, 0.5), "rotate": 0.7, "scale": 0.7, "noise": 0.5, "smooth": 0.5, "contrast": 0.5}


def steps(loader, start=0):
    return [loader.to_batch(views, "cpu") for views in loader.batches(start)]


def same(one, other):
    assert list(one.case_ids) == list(other.case_ids)
    for name in ("volume", "labels", "target", "padding"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b), name

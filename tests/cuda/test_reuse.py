"""Selections taken from another layer or an earlier step, on emulated kernels: the host is not asked."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.test_decoder import kernels, library
from tests.runtime.reused import Layers, story
from vortex.budget import Budget
from vortex.runtime.decoder import Decoder


@pytest.mark.parametrize("given", [False, True], ids=["appended", "taken in"])
def test_a_gpu_decides_by_itself(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(library("block_topk", kernels("block_topk")), budget=Budget(3), keep=[0, 1])
    layers = Layers(decoder, 3, given=given)
    right = Decoder.decode

    def decode(*args: object, **how: object) -> None:
        with monkeypatch.context() as patch:
            for name in ("__bool__", "__int__", "__float__", "item", "tolist", "nonzero"):
                patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the device is waited for"))
            right(*args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "decode", decode)
    story(layers)
    assert layers.selected < 18

"""What is set around a flow, put aside while the flow is loaded, traced or run eagerly."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from vortex import prints


@contextmanager
def plain() -> Iterator[None]:
    """fp32 on the CPU, without autocast, gradients, inference mode or torch.compile, whatever the caller has on.

    What the flow prints goes where :mod:`vortex.prints` has it.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(prints.of_flow())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # torch takes a traced tensor that indexes a real one for a sequence before it asks us
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` on, the caller's left as they were."""
    numpy = sys.modules.get("numpy")
    generator = torch.default_generator
    before = generator.get_state(), random.getstate(), numpy.random.get_state() if numpy is not None else None
    try:
        generator.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed)
        yield
    finally:
        generator.set_state(before[0])
        random.setstate(before[1])
        if numpy is not None:
            numpy.random.set_state(before[2])

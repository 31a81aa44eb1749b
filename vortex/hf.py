"""Flows in transformers: ``vortex.hf.register()``, then ``from_pretrained(..., attn_implementation="vortex")``.

docs/transformers.md is the manual. Programs import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from vortex.budget import Budget
from vortex.errors import HF_SETTINGS, HF_VERSION

if TYPE_CHECKING:
    from torch import nn

    from vortex.flow.flow import vFlow
    from vortex.runtime.transformers.report import Report

OLDEST = (5, 20)
"""The oldest transformers that is accepted; 5.24 is what tests run with."""


def register(
    name: str = "vortex",
    *,
    flow: str | vFlow | type[vFlow] = "quest",
    budget: Budget | Mapping[str, Any] | int = 61,
    page_size: int = 16,
    backend: Literal["compiled", "eager"] = "compiled",
    dense_layers: Iterable[int] = (),
    parameters: str = "",
) -> None:
    """Make ``attn_implementation=name`` known to transformers; several names may differ in what follows, and a name
    that is registered again has the new settings in models that are loaded already.

    Args:
        name: not one of transformers' own.
        flow: a shipped flow's name, ``file.py``, ``file.py:name`` or an artifact; with the eager backend also a flow
            object or class.
        budget: pages that a decode step reads beside the first and the last two, or a whole budget.
        page_size: tokens of a page.
        backend: ``compiled`` decodes by kernels, compiled at the first step of a model of another shape and kept in
            vortex's cache; ``eager`` by the oracle, the flow's own torch code on the CPU.
        dense_layers: layers that attend to everything.
        parameters: the weights of a flow that has some, a file of safetensors.

    A model whose config has ``vortex``, an object with some of these settings, has those instead.

    Raises:
        VortexError: VX9020 without transformers or with one that is too old, VX9022 for wrong settings, VX1018 and
            VX7002 for a flow that is not there.
    """
    _require()
    from transformers import AttentionInterface, AttentionMaskInterface

    from vortex.flow.flow import find_flow
    from vortex.runtime.transformers.attention import Attention
    from vortex.runtime.transformers.masks import causal_mask
    from vortex.runtime.transformers.settings import Settings

    taken = AttentionInterface._global_mapping.get(name)
    if not name or name == "eager" or "|" in name or (taken is not None and not isinstance(taken, Attention)):
        raise HF_SETTINGS.at(why=f"the name '{name}' is transformers' own")
    own = None if isinstance(flow, str) else flow
    named = flow if isinstance(flow, str) else (flow if isinstance(flow, type) else type(flow)).__name__
    given = {"flow": named, "budget": budget, "page_size": page_size, "backend": backend, "parameters": parameters}
    settings = Settings().changed({**given, "dense_layers": sorted(dense_layers)}, "register()")
    if own is None and not settings.flow.endswith(".vxa"):
        find_flow(settings.flow)
    elif own is not None and backend == "compiled":
        why = f"flow {named} is an object, which no other interpreter can import to compile it"
        raise HF_SETTINGS.at(why=f"{why}: give flow='file.py:name', or backend='eager'")
    AttentionInterface.register(name, Attention(settings, own))
    AttentionMaskInterface.register(name, causal_mask)


def report(model: nn.Module) -> Report:
    """Which layers of ``model`` its flow served so far, which stayed dense and why, and the share of pages that were
    read; ``print`` shows it.
    """
    _require()
    found: Report = import_module("vortex.runtime.transformers.report").report(model)
    return found


def _require() -> None:
    try:
        got = version("transformers")
    except PackageNotFoundError:
        raise HF_VERSION.at(what="transformers is not installed") from None
    if tuple(int(n) if n.isdecimal() else 0 for n in got.split(".")[:2]) < OLDEST:
        raise HF_VERSION.at(what=f"this is transformers {got}")

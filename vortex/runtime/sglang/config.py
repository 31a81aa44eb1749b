"""What the user wants of the backend: ``VORTEX_CONFIG``, JSON or a file of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from vortex.budget import Budget
from vortex.errors import ENGINE_CONFIG
from vortex.runtime.sglang.choice import Choice
from vortex.untrusted_json import JsonError, Length, Partial, Pattern, Range, parse, read

VARIABLE = "VORTEX_CONFIG"


Layer = Annotated[int, Range(0, 1 << 16)]


def _refuse_sources(pages_of: Mapping[int, int]) -> None:
    """VX9003 for a layer that takes the pages of one that is not before it, or that itself takes those of another."""
    for layer, source in pages_of.items():
        told = f"layers: layer {layer} takes the pages of {source}"
        if source >= layer:
            raise ENGINE_CONFIG.at(why=f"{told}, which is not an earlier layer")
        if source in pages_of:
            raise ENGINE_CONFIG.at(why=f"{told}, which selects none itself: it takes those of {pages_of[source]}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """``flow`` is a shipped flow's name, ``file.py``, ``file.py:name`` or an artifact ``x.vxa``; ``""`` for quest, or
    latent_topk where the model's attention is latent (MLA).

    ``page_size`` counts where the engine was given none; ``block_size`` is the tokens of what is selected where that is
    a part of the engine's page, 0 for the page or for what an artifact was compiled for. ``prefill_backend`` is the
    dense attention backend of SGLang's that prefills, ``""`` for triton, or torch_native on a CPU. ``parameters`` is
    the file of the flow's weights, where it has some. Layers select in every ``every``-th step, and those in ``layers``
    never: each attends to the pages of the layer that it names. With ``deterministic`` attention to a request's pages
    has the same bits in any batch. ``per_request`` is the most that a request may choose for itself, where it may.
    """

    flow: Annotated[str, Length(1, 4096)] = ""
    budget: Annotated[Budget, Partial()] = field(default_factory=lambda: Budget(61))
    dense_layers: frozenset[Annotated[int, Range(0, 1 << 16)]] = frozenset()
    page_size: Annotated[int, Range(1, 1 << 16)] = 16
    block_size: Annotated[int, Range(0, 1 << 16)] = 0
    prefill_backend: str = ""
    parameters: Annotated[str, Length(0, 4096)] = ""
    every: Annotated[int, Range(1, 1 << 16)] = 1
    deterministic: bool = False
    layers: Mapping[Annotated[str, Pattern("[0-9]{1,5}", "a layer")], Layer] = field(default_factory=dict)
    per_request: Annotated[Choice, Partial()] | None = None

    @property
    def pages_of(self) -> dict[int, int]:
        """The layer whose pages each of those that do not select attends to."""
        return {int(layer): source for layer, source in self.layers.items()}

    def prefill_on(self, device: str) -> str:
        """SGLang's name of the dense backend that reads prompts."""
        return self.prefill_backend or ("torch_native" if device == "cpu" else "triton")

    @classmethod
    def read(cls, text: str | None = None) -> EngineConfig:
        """From ``text``, by default the environment's; VX9003 for what is not a configuration."""
        text = os.environ.get(VARIABLE, "") if text is None else text
        try:
            made: EngineConfig = read(Annotated[EngineConfig, Partial()], _object(text.strip()))
        except JsonError as error:
            raise ENGINE_CONFIG.at(why=str(error)) from None
        _refuse_sources(made.pages_of)
        most = made.per_request
        if most is not None and most == Choice():
            raise ENGINE_CONFIG.at(why="per_request allows nothing: give it pages, a ratio, or dense")
        if most is not None and made.budget.table and not most.dense:
            raise ENGINE_CONFIG.at(why="per_request beside a table by layer may be {'dense': true} alone")
        return made


def _object(text: str) -> object:
    """The JSON that ``text`` is or that the file it names holds; an empty object for no text."""
    if not text:
        return {}
    if not text.startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not text"
            raise ENGINE_CONFIG.at(why=f"file '{text}': {why}") from None
    return parse(text)

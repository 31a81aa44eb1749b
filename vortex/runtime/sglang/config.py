"""What the user wants of the backend: ``VORTEX_CONFIG``, JSON or a file of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vortex.budget import Budget
from vortex.errors import ENGINE_CONFIG, VortexError, nearest

VARIABLE = "VORTEX_CONFIG"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """``flow`` is a shipped flow's name, ``file.py``, ``file.py:name`` or an artifact ``x.vxa``; ``""`` for quest, or
    latent_topk where the model's attention is latent (MLA).

    ``page_size`` counts where the engine was given none; ``prefill_backend`` is the dense attention backend of
    SGLang's that prefills, ``""`` for triton, or torch_native on a CPU.
    """

    flow: str = ""
    budget: Budget = field(default_factory=lambda: Budget(61))
    dense_layers: frozenset[int] = frozenset()
    page_size: int = 16
    prefill_backend: str = ""

    @classmethod
    def read(cls, text: str | None = None) -> EngineConfig:
        """From ``text``, by default the environment's; VX9003 for what is no configuration."""
        text = os.environ.get(VARIABLE, "") if text is None else text
        given = _object(text.strip())
        known: dict[str, Any] = {"flow": str, "budget": dict, "dense_layers": list, "page_size": int}
        known["prefill_backend"] = str
        for name, value in given.items():
            _need(name in known, f"no key '{name}'{nearest(name, known)}")
            right = isinstance(value, known[name]) and not isinstance(value, bool)
            _need(right, f"'{name}' is {value!r}, a {known[name].__name__} is needed")
        made: dict[str, Any] = dict(given)
        if "budget" in made:
            made["budget"] = _budget(made["budget"])
        if "dense_layers" in made:
            layers = made["dense_layers"]
            right = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in layers)
            _need(right, f"'dense_layers' is {layers!r}, layer numbers are needed")
            made["dense_layers"] = frozenset(layers)
        _need(made.get("flow") != "", "'flow' is empty")
        _need(made.get("page_size", 1) >= 1, f"'page_size' is {made.get('page_size')}, at least 1 is needed")
        return cls(**made)


def _object(text: str) -> dict[str, Any]:
    """The JSON object that ``text`` is or that the file it names holds; nothing for no text."""
    if not text:
        return {}
    if not text.startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is no text"
            raise ENGINE_CONFIG.at(why=f"file '{text}': {why}") from None
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ENGINE_CONFIG.at(why=f"is no JSON: {error}") from None
    _need(isinstance(given, dict), f"is a JSON {type(given).__name__}, an object is needed")
    return dict(given)


def _budget(given: dict[str, Any]) -> Budget:
    names = ("pages", "ratio", "sink", "recent")
    for name in given:
        _need(name in names, f"'budget' has no '{name}'{nearest(name, names)}")
    _need("pages" in given, "'budget' needs 'pages', the number of scored pages that are kept")
    try:
        return Budget(**given)
    except VortexError as error:
        raise ENGINE_CONFIG.at(why=f"'budget': {error.message}") from None


def _need(right: bool, why: str) -> None:
    if not right:
        raise ENGINE_CONFIG.at(why=why)

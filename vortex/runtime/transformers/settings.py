"""What the user wants of the attention: the arguments of ``vortex.hf.register``, and the model's ``config.vortex``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from vortex.budget import Budget, integer
from vortex.errors import HF_SETTINGS
from vortex.untrusted_json import JsonError, Length, Partial, Range, read


@dataclass(frozen=True, slots=True)
class Settings:
    """``flow`` is a shipped flow's name, ``file.py``, ``file.py:name`` or an artifact ``x.vxa``, which the eager
    backend does not take. ``page_size`` is in tokens. ``parameters`` is the file of the flow's weights, where it has
    some. Layers in ``dense_layers`` attend to everything.
    """

    flow: Annotated[str, Length(1, 4096)] = "quest"
    budget: Annotated[Budget, Partial()] = field(default_factory=lambda: Budget(61))
    page_size: Annotated[int, Range(1, 1 << 16)] = 16
    backend: Literal["compiled", "eager"] = "compiled"
    dense_layers: frozenset[Annotated[int, Range(0, 1 << 16)]] = frozenset()
    parameters: Annotated[str, Length(0, 4096)] = ""

    def __post_init__(self) -> None:
        if self.backend == "eager" and self.flow.endswith(".vxa"):
            why = f"flow '{self.flow}' is an artifact, and backend 'eager' runs the flow's own code"
            raise HF_SETTINGS.at(why=why)

    def changed(self, given: object, where: str) -> Settings:
        """With the keys that ``given`` has; a budget may be a :class:`Budget`, or a number of pages.

        Raises:
            VortexError: VX9022 for what is no setting or no budget.
        """
        if not isinstance(given, Mapping):
            raise HF_SETTINGS.at(why=f"{where} is {given!r}; an object is needed")
        new: dict[str, Any] = dict(given)
        budget = new.pop("budget", None)
        if isinstance(new.get("dense_layers"), set | frozenset | tuple | range):
            new["dense_layers"] = sorted(new["dense_layers"])
        try:
            made = read(Annotated[Settings, Partial()], new | _as_json(budget))
        except JsonError as error:
            raise HF_SETTINGS.at(why=f"{where}: {error}") from None
        found = {name: getattr(made, name) for name in new}
        if isinstance(budget, Budget):
            found["budget"] = budget
        elif budget is not None:
            found["budget"] = made.budget
        return replace(self, **found)


def _as_json(budget: object) -> dict[str, object]:
    """As the configuration's key; nothing where it is a Budget already, or left out."""
    if budget is None or isinstance(budget, Budget):
        return {}
    pages = integer(budget)
    return {"budget": budget if pages is None else {"pages": pages}}

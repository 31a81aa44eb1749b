"""Times from a results file of ``bench/``, where it is of the card that a compilation is for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from vortex.errors import BAD_OPTION, NO_SUCH_FILE
from vortex.report.model import Measured
from vortex.targets.gpu import MACHINES
from vortex.tune.shapes import Shape
from vortex.untrusted_json import JsonError, Partial, Pattern, Raw, parse, read

Word = Annotated[str, Pattern(r"(?s).*", "text")]


@dataclass(frozen=True, slots=True)
class Results:
    """A results file: the card, and a row for each flow and shape."""

    device: Word
    rows: tuple[Annotated[Mapping[str, object], Raw()], ...] = ()
    date: Word = ""
    commit: Word = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One flow at one shape."""

    flow: str
    requests: int
    tokens: int
    microseconds: Mapping[str, float] = field(default_factory=dict)
    """By kernel, as ``megabytes`` and ``of_copy``."""
    megabytes: Mapping[str, float] = field(default_factory=dict)
    of_copy: Mapping[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        return f"{self.requests} requests of {self.tokens} tokens"


def read_results(path: Path, targets: Iterable[str], flows: Collection[str]) -> list[Row]:
    """The rows of ``flows`` in the file at ``path``.

    Raises:
        VortexError: VX7002 when there is no such file or it is no results file, VX7001 when it is of a card that none
            of ``targets`` stands for, or has no row of a flow.
    """
    try:
        found: Results = read(Annotated[Results, Partial(more=True)], parse(path.read_bytes()))
    except OSError as e:
        raise NO_SUCH_FILE.at(path=str(path), why=f"cannot be read: {e.strerror}") from None
    except JsonError as e:
        raise NO_SUCH_FILE.at(path=str(path), why=f"is not a results file of bench/: {e}") from None
    cards = [MACHINES[t].name for t in targets if t in MACHINES]
    if not any(card in found.device for card in cards):
        why = f"'{path}' was measured on '{found.device}', and the compilation is for {' and '.join(cards) or 'no GPU'}"
        raise BAD_OPTION.at(option="--results", why=why, hint="give a file of the card that it was compiled for")
    rows = [row for x in found.rows if (row := _row(x)) is not None]
    if not (mine := [r for r in rows if r.flow in flows]):
        there = ", ".join(dict.fromkeys(r.flow for r in rows)) or "no flow at all"
        raise BAD_OPTION.at(
            option="--results", why=f"'{path}' has no row of {' or '.join(flows)}", hint=f"it has {there}"
        )
    return mine


def _row(x: Mapping[str, object]) -> Row | None:
    """A row as ``bench/gpu_layer.py`` writes it; None for one of another kind."""
    if not isinstance(x, dict) or not isinstance(x.get("flow"), str):
        return None
    requests, tokens = x.get("requests"), x.get("tokens")
    if not isinstance(requests, int) or not isinstance(tokens, int):
        return None
    numbers = {k: float(v) for k, v in x.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    times = {k.removesuffix("_us"): v for k, v in numbers.items() if k.endswith("_us")}
    shares = {k.removesuffix("_of_copy"): v for k, v in numbers.items() if k.endswith("_of_copy")}
    sizes = x.get("MB")
    pair = isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(n, int | float) for n in sizes)
    megabytes = dict(zip(("select", "attend"), map(float, sizes), strict=True)) if pair and sizes else {}
    return Row(str(x["flow"]), requests, tokens, times, megabytes, shares)


def measured(rows: Iterable[Row], flow: str, kernel: str, shape: Shape, page_size: int) -> tuple[Measured, ...]:
    """The times of a flow's kernel; a shape is the report's when requests agree and tokens to the page."""
    return tuple(
        Measured(
            r.shape,
            r.microseconds[kernel],
            r.megabytes.get(kernel, 0.0),
            r.of_copy.get(kernel, 0.0),
            r.requests == shape.batch and -(-r.tokens // page_size) == -(-shape.tokens // page_size),
        )
        for r in rows
        if r.flow == flow and kernel in r.microseconds
    )

"""What terminal and page say alike of a trace: the line on top, the columns of the table, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vortex.page_traces.figures import Figures, HeadFigures

NONE = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a layer or head, and what it means."""

    title: str
    means: str
    of: Callable[[HeadFigures], float]


COLUMNS = (
    Column("read", "pages that were read, of all", lambda x: x.read),
    Column("again", "pages that were read in the recorded step before, too, of those read", lambda x: x.again),
    Column("mass", "attention mass on the pages that were read, where pages were left out", lambda x: x.mass),
    Column("best", "the most that as many pages hold", lambda x: x.best),
    Column("needles", "pages with a needle that were read, of those with one", lambda x: x.needles),
    Column("complete", "rows that read all pages with a needle", lambda x: x.complete),
)


def columns(figures: Iterable[HeadFigures]) -> list[Column]:
    """Those that say something of at least one of ``figures``."""
    listed = list(figures)
    return [c for c in COLUMNS if any(not math.isnan(c.of(x)) for x in listed)]


def cells(figures: HeadFigures, shown: Sequence[Column]) -> list[str]:
    """A row of the table."""
    return [share(c.of(figures)) for c in shown]


def note(shown: Sequence[Column]) -> str:
    """What the columns mean, in a sentence."""
    means = "; ".join(f"{c.title}: {c.means}" for c in shown)
    return f"A row is a request's KV head in a layer and recorded step. {means}."


def headline(figures: Figures) -> str:
    """What ran and what of it was recorded."""
    t = figures.trace
    dense = ", ".join(map(str, t.dense_layers)) or "none"
    many = len(figures.requests)
    return (
        f"flow {t.flow} on {t.target}, by {t.source}: of a long context a KV head reads {t.budget_pages} pages of "
        f"{t.block_size} ({t.budget_tokens} tokens), dense layers {dense} of {t.layers}; "
        f"{_count(figures.steps, 'step')} of {_count(many, 'request')} recorded"
    )


def share(x: float) -> str:
    """As ``.93``; 1 and above as ``1.00``."""
    return NONE if math.isnan(x) else f"{x:.2f}".removeprefix("0")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"

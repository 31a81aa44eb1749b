"""The tables of an evaluation, the same on a terminal and in a report: cells as texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vortex.errors import counted
from vortex.evaluate.statistics import Cell, Figures, Summary, Total

NONE = "-"
FEW = 100
"""Prompts or tokens by which shares are told; with fewer the first digits are no more than luck."""


@dataclass(frozen=True)
class Table:
    """Rows of texts under a head; ``note`` says how to read them."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(summary: Summary) -> Iterator[Table]:
    """Those that have rows: all lanes with their costs, each task and length, what failed."""
    for made in (pareto(summary), tasks(summary), details(summary), failures(summary)):
        if made.rows:
            yield made


def pareto(summary: Summary) -> Table:
    """A row for each rule and budget: answers beside cost."""
    at = summary.settings.workload
    head = ("rule", "pages", "answers", "of dense", "better/worse", "p", "worst head", "MB", "us", "front")
    left_out = [f"{t.name} at {t.length}" for t in summary.tasks if not t.informative]
    note = f"MB and predicted us: {at}. front: no rule beats it in bytes (b), in time (t)."
    note += " Nothing is compiled for a GPU: with registers and CTAs an SM times are told by vortex info --shape."
    counts = [t.figures.prompts for t in summary.totals]
    note += few(max(counts, default=0), "prompt", "was counted", "were counted")
    if left_out:
        note += f" Left out, for the model cannot do them densely: {', '.join(left_out)}."
    return Table("Answers and what they cost", head, tuple(_pareto(summary, t) for t in summary.totals), note)


def _pareto(summary: Summary, t: Total) -> tuple[str, ...]:
    f, dense = t.figures, t.lane.rule == "dense"
    return (
        *_lane(t),
        f"{share(f.answers)} ± {share(f.stderr)}" if not math.isnan(f.stderr) else share(f.answers),
        NONE if dense else share(f.of_dense),
        NONE if dense else f"{f.pairs.better}/{f.pairs.worse}",
        NONE if dense else _probability(f.pairs.p),
        NONE if dense else _worst(summary, f),
        number(t.cost.bytes / 1e6, 1) if t.cost else NONE,
        number(t.cost.microseconds, 1) if t.cost else NONE,
        ("b" if t.front_bytes else "") + ("t" if t.front_us else ""),
    )


def _lane(t: Total) -> tuple[str, str]:
    """The cells under ``rule`` and ``pages``."""
    return t.lane.rule, NONE if t.lane.rule == "dense" else str(t.lane.budget)


def tasks(summary: Summary) -> Table:
    """A row for each rule and budget, a column for each task and length: answers, or log-probability without any."""
    found = {(c.lane, c.task, c.length): c for c in summary.cells}
    head = ("rule", "pages", *(f"{t.name} {_tokens(t.length)}{'' if t.informative else ' *'}" for t in summary.tasks))
    rows = tuple(
        (
            *_lane(t),
            *(_answers(found.get((t.lane, k.name, k.length)), k.scored) for k in summary.tasks),
        )
        for t in summary.totals
    )
    note = "Answers, 0 to 1; of a task without answers, the log-probability of a token."
    if not all(t.informative for t in summary.tasks):
        note += " *: the model cannot do it densely, so it says nothing."
    return Table("Answers by task", head, rows, note)


def details(summary: Summary) -> Table:
    """A row for each rule and budget: what happens inside of attention."""
    head = ("rule", "pages", "log-prob", "to dense", "recall", "mass", "worst head", "error", "pages read", "invalid")
    rows = tuple(
        (
            *_lane(t),
            number(t.figures.logprob, 3),
            number(t.figures.logprob_difference, 3),
            share(t.figures.recall),
            share(t.figures.mean_mass),
            _worst(summary, t.figures),
            share(t.figures.error, 3),
            number(t.figures.pages, 1),
            str(t.figures.invalid),
        )
        for t in summary.totals
    )
    note = "worst head: the least mass of a KV head, with its layer and head. invalid: prompts with NaN or infinities."
    return Table("Inside of attention", head, rows, note)


def failures(summary: Summary) -> Table:
    """What did not run."""
    rows = tuple(
        (f.rule, str(f.budget or NONE), f"{f.task} {_tokens(f.length)}" if f.task else NONE, f.message)
        for f in summary.failures
    )
    return Table("Failed", ("rule", "pages", "task", "why"), rows)


def share(x: float, digits: int = 2) -> str:
    """A number from 0 to 1 without its leading zero, as ``.88``."""
    return NONE if math.isnan(x) else number(x, digits).replace("0.", ".", 1) if abs(x) < 1 else number(x, digits)


def few(n: int, what: str, was: str, were: str) -> str:
    """A sentence for a note where shares rest on fewer than :data:`FEW`; empty where they do not."""
    if not 0 < n < FEW:
        return ""
    return f" Only {counted(n, what)} {was if n == 1 else were}: shares differ by {share(1 / n)} with a single {what}."


def number(x: float, digits: int) -> str:
    """With so many digits behind the point; never ``-0``."""
    return NONE if math.isnan(x) else f"{round(x, digits) + 0.0:.{digits}f}"


def _probability(p: float) -> str:
    return "<.001" if p < 0.001 else share(p, 3)


def _worst(summary: Summary, f: Figures) -> str:
    row, head, mass = f.worst
    return NONE if math.isnan(mass) else f"{share(mass)} L{summary.layer(row)}H{head}"


def _answers(cell: Cell | None, scored: bool) -> str:
    if cell is None:
        return NONE
    return share(cell.figures.answers) if scored else number(cell.figures.logprob, 3)


def _tokens(n: int) -> str:
    return f"{n // 1024}K" if n >= 1024 and n % 1024 == 0 else str(n)

"""From outcomes to a summary: answers kept beside dense attention, recall, mass by layer and head, cost, the front.

A *cell* is a lane at a task and length; its prompts are paired with the same prompts under ``dense``. A lane's *total*
is the mean over its cells, so that each task and length counts alike. Needs numpy alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from vortex.evaluate.cost import Cost, Workload
from vortex.evaluate.outcomes import BASELINES, Lane, Outcome

SCHEMA = 1
"""Version of :meth:`Summary.as_json`; a key that goes, or changes its meaning, makes it one more."""

DENSE = Lane("dense", 0)
NOT_RULES = ("oracle", "random")
"""Baselines that are no way to decode, and so never on the front: one knows all masses, the other nothing."""


@dataclass(frozen=True)
class Failure:
    """Something that did not run, and why; ``budget`` and ``task`` are 0 and empty where all of them are meant."""

    rule: str
    message: str
    budget: int = 0
    task: str = ""
    length: int = 0


@dataclass(frozen=True)
class Settings:
    """What was evaluated and how, as far as it is not told by the outcomes themselves.

    Attributes:
        model: its name.
        seed: of prompts and of random pages.
        device, backend: where and through what attention ran.
        page_size: tokens of a page.
        sink, recent: pages that are read always.
        layers: the model's numbers of the layers in ``Outcome.mass``; empty: 0, 1, 2 and so on.
        windowed: layers with a sliding window, which stay dense and are no part of any figure.
        least_dense: a task whose dense score is below is uninformative, and left out of the totals.
        workload: where costs are told.
        command: the whole command line.
        versions: of the packages that took part.
    """

    model: str
    seed: int = 0
    device: str = "cpu"
    backend: str = "eager"
    page_size: int = 16
    sink: int = 1
    recent: int = 2
    layers: tuple[int, ...] = ()
    windowed: int = 0
    least_dense: float = 0.3
    workload: Workload = field(default_factory=Workload)
    command: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task at a length, as dense attention does it.

    Attributes:
        dense: mean score; NaN for a task without answers, or that dense attention did not run.
        scored: whether it has answers that are right or wrong; elsewhere log-probability counts alone.
        informative: whether the totals have it.
    """

    name: str
    length: int
    prompts: int
    dense: float
    logprob: float
    scored: bool
    informative: bool


@dataclass(frozen=True)
class Pairs:
    """Scores of the same prompts under a rule and under dense attention.

    Attributes:
        both, only_dense, only_this, neither: prompts by who answered all of it (score 1).
        better, worse: prompts with a higher or lower score than under dense attention; the others are even.
    """

    both: int = 0
    only_dense: int = 0
    only_this: int = 0
    neither: int = 0
    better: int = 0
    worse: int = 0

    @property
    def p(self) -> float:
        """Two-sided sign test: how likely so uneven a split is where the rule loses nothing."""
        return sign_test(self.better, self.worse)

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))


@dataclass(frozen=True)
class Figures:
    """What a lane did, at one task and length or over all. NaN stands for what there is none of.

    Attributes:
        prompts: that were answered.
        answers: mean score, 0 to 1.
        stderr: its standard error, as if one more prompt had been answered right and one more wrong.
        dense: mean score of dense attention on the same prompts.
        pairs: prompts one by one beside dense attention.
        logprob: mean log-probability of a token of the right answer, nats.
        logprob_difference: the same less that of dense attention.
        recall: share of (step, layer, head) that read all of the evidence.
        mass: ``[layers, heads]``, share of dense attention's mass that was read.
        error: relative error of attention's output, mean over layers and heads.
        pages: pages that a head read.
        invalid: prompts whose log-probability or output was NaN or infinite; other means leave these values out.
    """

    prompts: int
    answers: float
    stderr: float
    dense: float
    pairs: Pairs
    logprob: float
    logprob_difference: float
    recall: float
    mass: np.ndarray = field(compare=False)
    error: float
    pages: float
    invalid: int

    @property
    def of_dense(self) -> float:
        """Answers as a share of those of dense attention."""
        return self.answers / self.dense if self.dense > 0 else math.nan

    @property
    def mean_mass(self) -> float:
        return _mean(self.mass.ravel())

    @property
    def worst(self) -> tuple[int, int, float]:
        """Row and column of the least mass in :attr:`mass`, and that mass."""
        if not np.isfinite(self.mass).any():
            return 0, 0, math.nan
        at = int(np.nanargmin(self.mass))
        layer, head = divmod(at, self.mass.shape[1])
        return layer, head, float(self.mass[layer, head])


@dataclass(frozen=True)
class Cell:
    """A lane at a task and length."""

    lane: Lane
    task: str
    length: int
    figures: Figures


@dataclass(frozen=True)
class Total:
    """A lane over all informative tasks.

    Attributes:
        missing: prompts that dense attention answered and this lane did not, for it failed there.
        cost: of a step; None where it was not counted.
        front_bytes, front_us: whether no other rule has at least these answers for fewer bytes, or less time.
    """

    lane: Lane
    figures: Figures
    missing: int = 0
    cost: Cost | None = None
    front_bytes: bool = False
    front_us: bool = False

    @property
    def baseline(self) -> bool:
        return self.lane.rule in BASELINES


@dataclass(frozen=True)
class Summary:
    """All that an evaluation says; lanes in the order in which rules and budgets first came."""

    settings: Settings
    tasks: tuple[Task, ...]
    totals: tuple[Total, ...]
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...] = ()

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.lane.rule for t in self.totals))

    def total(self, rule: str, budget: int = 0) -> Total | None:
        """That of a lane, if it ran."""
        return next((t for t in self.totals if t.lane == Lane(rule, budget)), None)

    def layer(self, row: int) -> int:
        """The model's number of a row of :attr:`Figures.mass`."""
        return self.settings.layers[row] if self.settings.layers else row

    def verdicts(self) -> list[dict[str, object]]:
        """For each flow and budget, on one line, what a program that searches for flows needs; docs/eval.md."""
        return [
            {
                "flow": t.lane.rule,
                "budget": t.lane.budget,
                "answers": _json(t.figures.answers),
                "dense": _json(t.figures.dense),
                "bytes": _json(t.cost.bytes) if t.cost else None,
                "microseconds": _json(t.cost.microseconds) if t.cost else None,
                "worst_head": _json(t.figures.worst[2]),
            }
            for t in self.totals
            if not t.baseline
        ]

    def as_json(self) -> dict[str, object]:
        """Lists, numbers and texts; null for NaN. docs/eval.md has the schema, the tests hold it."""
        settings = asdict(replace(self.settings, versions=dict(self.settings.versions)))
        return {
            "schema": SCHEMA,
            "settings": settings,
            "tasks": [_task(t) for t in self.tasks],
            "lanes": [
                {
                    "rule": t.lane.rule,
                    "budget": t.lane.budget,
                    "baseline": t.baseline,
                    **self._figures(t.figures),
                    "missing": t.missing,
                    "bytes": _json(t.cost.bytes) if t.cost else None,
                    "microseconds": _json(t.cost.microseconds) if t.cost else None,
                    "kernels": {name: _json(n) for name, n in t.cost.kernels.items()} if t.cost else None,
                    "front_bytes": t.front_bytes,
                    "front_microseconds": t.front_us,
                    "mass_by_layer_and_head": [[_json(x) for x in row] for row in t.figures.mass.tolist()],
                }
                for t in self.totals
            ],
            "cells": [
                {
                    "rule": c.lane.rule,
                    "budget": c.lane.budget,
                    "task": c.task,
                    "length": c.length,
                    **self._figures(c.figures),
                }
                for c in self.cells
            ],
            "verdicts": self.verdicts(),
            "failures": [asdict(f) for f in self.failures],
        }

    def _figures(self, f: Figures) -> dict[str, object]:
        row, head, least = f.worst
        return {
            "prompts": f.prompts,
            "answers": _json(f.answers),
            "stderr": _json(f.stderr),
            "dense": _json(f.dense),
            "of_dense": _json(f.of_dense),
            **asdict(f.pairs),
            "p": _json(f.pairs.p),
            "logprob": _json(f.logprob),
            "logprob_difference": _json(f.logprob_difference),
            "recall": _json(f.recall),
            "mass": _json(f.mean_mass),
            "worst_head": None if math.isnan(least) else _worst(self.layer(row), head, least),
            "error": _json(f.error),
            "pages": _json(f.pages),
            "invalid": f.invalid,
        }


def sign_test(better: int, worse: int) -> float:
    """Probability of a split at least so uneven of ``better + worse`` fair coins, both sides; 1 without any."""
    n, least = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n)


def summarise(
    outcomes: Iterable[Outcome],
    settings: Settings,
    costs: Mapping[Lane, Cost] | None = None,
    failures: Sequence[Failure] = (),
) -> Summary:
    """Statistics of whatever has come so far; a prompt that comes twice for a lane counts once, as it came last.

    Lanes are compared with ``dense`` on the prompts that both answered; without any, what is relative to it is NaN.
    """
    by_cell: dict[tuple[Lane, str, int], dict[int, Outcome]] = {}
    for o in outcomes:
        by_cell.setdefault((o.lane, o.task, o.length), {})[o.index] = o
    lanes = _in_order(lane for lane, _, _ in by_cell)
    where = list(dict.fromkeys((task, length) for _, task, length in by_cell))
    scored = {(t, n) for (_, t, n), cell in by_cell.items() if any(not math.isnan(o.score) for o in cell.values())}
    tasks = tuple(
        _of_task(t, n, by_cell.get((DENSE, t, n), {}), (t, n) in scored, settings.least_dense) for t, n in where
    )
    cells, totals = [], []
    for lane in lanes:
        counted: list[tuple[Task, Figures]] = []
        missing = 0
        for t in tasks:
            mine, dense = by_cell.get((lane, t.name, t.length), {}), by_cell.get((DENSE, t.name, t.length), {})
            missing += len(dense.keys() - mine.keys()) if t.informative else 0
            if mine:
                cells.append(Cell(lane, t.name, t.length, figures := _of_cell(mine, dense)))
                counted += [(t, figures)] if t.informative else []
        totals.append(Total(lane, _over(counted), missing, (costs or {}).get(lane)))
    return Summary(settings, tasks, tuple(_with_fronts(totals)), tuple(cells), tuple(failures))


def _in_order(lanes: Iterable[Lane]) -> list[Lane]:
    """Rules as they came, baselines first; a rule's budgets rising."""
    known = list(dict.fromkeys(lanes))
    rules = list(dict.fromkeys(x.rule for x in known))
    rules.sort(key=lambda r: BASELINES.index(r) if r in BASELINES else len(BASELINES))
    return sorted(known, key=lambda x: (rules.index(x.rule), x.budget))


def _of_task(name: str, length: int, dense: Mapping[int, Outcome], scored: bool, least: float) -> Task:
    """What dense attention cannot do, no rule can lose."""
    score = _mean([o.score for o in dense.values()])
    logprob = _mean([o.logprob for o in dense.values()])
    return Task(name, length, len(dense), score, logprob, scored, not score < least)


def _of_cell(mine: Mapping[int, Outcome], dense: Mapping[int, Outcome]) -> Figures:
    every = list(mine.values())
    both = [(mine[i], dense[i]) for i in sorted(mine.keys() & dense.keys())]
    scores = [o.score for o in every]
    return Figures(
        prompts=len(every),
        answers=_mean(scores),
        stderr=_stderr(scores),
        dense=_mean([d.score for _, d in both]),
        pairs=sum((_pair(o.score, d.score) for o, d in both), Pairs()),
        logprob=_mean([o.logprob for o in every]),
        logprob_difference=_mean([o.logprob - d.logprob for o, d in both]),
        recall=_mean([o.recall for o in every]),
        mass=_mean_matrix([o.mass for o in every]),
        error=_mean([_mean(np.ravel(o.error)) for o in every]),
        pages=_mean([o.pages for o in every]),
        invalid=sum(not _is_valid(o) for o in every),
    )


def _is_valid(o: Outcome) -> bool:
    """Whether it is made of numbers; what is judged by a trace has neither score nor log-probability."""
    traced = math.isnan(o.score) and math.isnan(o.logprob)
    return bool(np.isfinite(o.error).all()) and (traced or math.isfinite(o.logprob))


def _pair(this: float, dense: float) -> Pairs:
    if math.isnan(this) or math.isnan(dense):
        return Pairs()
    a, b = this >= 1, dense >= 1
    return Pairs(
        int(a and b), int(b and not a), int(a and not b), int(not a and not b), int(this > dense), int(this < dense)
    )


def _over(cells: Sequence[tuple[Task, Figures]]) -> Figures:
    """The mean over cells; counts are added. Answers come from tasks that have some."""
    every = [f for _, f in cells]
    scored = [f for t, f in cells if t.scored]

    def mean(of: Callable[[Figures], float], among: Sequence[Figures] = every) -> float:
        return _mean([of(f) for f in among])

    errors = [f.stderr for f in scored]
    return Figures(
        prompts=sum(f.prompts for f in every),
        answers=mean(lambda f: f.answers, scored),
        stderr=math.sqrt(sum(e * e for e in errors)) / len(errors) if errors else math.nan,
        dense=mean(lambda f: f.dense, scored),
        pairs=sum((f.pairs for f in scored), Pairs()),
        logprob=mean(lambda f: f.logprob),
        logprob_difference=mean(lambda f: f.logprob_difference),
        recall=mean(lambda f: f.recall),
        mass=_mean_matrix([f.mass for f in every]),
        error=mean(lambda f: f.error),
        pages=mean(lambda f: f.pages),
        invalid=sum(f.invalid for f in every),
    )


def _with_fronts(totals: Sequence[Total]) -> list[Total]:
    """Totals that know whether another one beats them."""

    def front(cost: Callable[[Cost], float]) -> set[Lane]:
        points = [
            (t.lane, t.figures.answers, cost(t.cost))
            for t in totals
            if t.cost is not None and t.lane.rule not in NOT_RULES and not math.isnan(t.figures.answers)
        ]
        return {
            lane
            for lane, answers, c in points
            if not any(a >= answers and other <= c and (a > answers or other < c) for _, a, other in points)
        }

    by_bytes, by_time = front(lambda c: c.bytes), front(lambda c: c.microseconds)
    return [replace(t, front_bytes=t.lane in by_bytes, front_us=t.lane in by_time) for t in totals]


def _mean(numbers: Sequence[float] | np.ndarray) -> float:
    """Of those that are finite; NaN where none is."""
    kept = np.asarray(numbers, np.float64)
    kept = kept[np.isfinite(kept)]
    return float(kept.mean()) if kept.size else math.nan


def _mean_matrix(every: Sequence[np.ndarray]) -> np.ndarray:
    """Element by element, of those that are finite."""
    if not every:
        return np.full((0, 0), math.nan)
    stacked = np.stack([np.asarray(m, np.float64) for m in every])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an element that is NaN everywhere
        return np.nanmean(np.where(np.isfinite(stacked), stacked, np.nan), axis=0)


def _stderr(numbers: Sequence[float]) -> float:
    """Standard error of a mean score, one right and one wrong answer added: four of four are not certain."""
    if not numbers or not np.isfinite(numbers).all():
        return math.nan
    return float(np.std([*numbers, 0.0, 1.0]) / math.sqrt(len(numbers) + 2))


def _values(p: Pairs) -> tuple[int, ...]:
    return p.both, p.only_dense, p.only_this, p.neither, p.better, p.worse


def _json(x: float) -> float | None:
    """Six digits; None for NaN and infinities, which JSON has none of."""
    return float(f"{x:.6g}") if math.isfinite(x) else None


def _worst(layer: int, head: int, mass: float) -> dict[str, object]:
    return {"layer": layer, "head": head, "mass": _json(mass)}


def _task(t: Task) -> dict[str, object]:
    return {
        "task": t.name,
        "length": t.length,
        "prompts": t.prompts,
        "dense": _json(t.dense),
        "logprob": _json(t.logprob),
        "scored": t.scored,
        "informative": t.informative,
    }

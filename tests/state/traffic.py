"""Requests that join, share prefixes, decode and leave, as batches of the page interpreter; and what state must be.

Pages and slots go from request to request. Whatever nobody has written holds NaN, in pools, summaries and state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from vortex.budget import Budget
from vortex.flow import oracle
from vortex.flow.flow import vFlow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch, Counts, run_program
from vortex.ir.numerics import narrow
from vortex.ir.types import DTYPES, TensorType
from vortex.spec import Spec

SPEC = Spec(page_size=4, head_dim=32, group=2)
HEADS = 2
PAGES, SLOTS, COLUMNS = 160, 5, 72
CLOSE = {4: (1e-3, 1e-4), 2: (2.0**-6, 2e-2), 1: (2.0**-2, 2e-2)}
"""How near state must be, by the bytes of an element: relative and absolute. What is kept is rounded each step."""
ABSENT = ""
"""The name of a padded row."""


@dataclass
class Request:
    slot: int
    state: oracle.RequestState
    pages: list[int] = field(default_factory=list)
    tokens: dict[str, Any] = field(default_factory=dict)
    """K and V ``[n, Hkv, D]``."""
    fields: list[dict[str, Any]] = field(default_factory=list)
    """Of each full page, or block of one: ``[Hkv, *shape]``."""
    prefix: int = 0
    """Tokens that another request has stored, until the first append."""

    @property
    def length(self) -> int:
        return len(self.tokens["k"])


class Traffic:
    """One layer's memory and who is in it."""

    def __init__(self, flow: type[vFlow], budget: Budget, *, seed: int = 0, spec: Spec = SPEC) -> None:
        self.flow, self.budget, self.spec, self.module = flow, budget, spec, trace(flow, spec)
        self.random = np.random.default_rng(seed)
        self.paged = {n: np.full((PAGES, HEADS, spec.page_size, spec.head_dim), np.nan, np.float32) for n in "kv"}
        self.state = {}
        for d in self.module.declared("field"):
            assert isinstance(d.type, TensorType)
            columns, blocks = COLUMNS * spec.page_blocks, () if spec.page_blocks == 1 else (spec.page_blocks,)
            lead = {"page": (SLOTS, HEADS, columns), "request": (SLOTS, HEADS)}.get(d.attrs.get("state", ""))
            into = self.paged if lead is None else self.state
            into[d.name] = np.full((*(lead or (PAGES, HEADS, *blocks)), *d.type.tile), np.nan, np.float32)
        self.requests: dict[str, Request] = {}
        self.free_pages = list(self.random.permutation(PAGES - 1) + 1)  # page 0 is what padded rows name
        self.free_slots = list(range(SLOTS))
        self.held = np.zeros(PAGES, int)
        """How many requests have each page."""

    # who is there

    def join(self, name: str, share: str = "", tokens: int = 0) -> None:
        """A request without tokens, or with the first ``tokens`` of another, which are full pages."""
        made = Request(self.free_slots.pop(), oracle.RequestState(self.flow, self.spec, HEADS))
        made.tokens = {n: np.zeros((0, HEADS, self.spec.head_dim), np.float32) for n in "kv"}
        if share:
            other, pages = self.requests[share], tokens // self.spec.page_size
            made.pages, made.prefix = list(other.pages[:pages]), tokens
            made.tokens = {n: x[:tokens] for n, x in other.tokens.items()}
            made.fields = list(other.fields[: pages * self.spec.page_blocks])
            self.held[made.pages] += 1
        self.requests[name] = made

    def leave(self, name: str) -> None:
        gone = self.requests.pop(name)
        self.free_slots.append(gone.slot)
        for p in gone.pages:
            self.held[p] -= 1
            if not self.held[p]:
                self.free_pages.append(p)

    # steps

    def batch(self, new: dict[str, int]) -> Batch:
        """The step in which these requests get so many tokens; ``ABSENT`` is a padded row, with a slot of somebody."""
        rows = [self.requests.get(name) for name in new]
        fresh = [int(bool(r and r.prefix)) for r in rows]
        loc: list[int] = []
        given: dict[str, list[Any]] = {"k_new": [], "v_new": []}
        size = self.spec.page_size
        for r, count in zip(rows, new.values(), strict=True):
            if r is None:
                continue
            r.prefix = 0
            for t in range(r.length, r.length + count):
                if t % size == 0:
                    r.pages.append(self.free_pages.pop())
                    self.held[r.pages[-1]] += 1
                loc.append(r.pages[-1] * size + t % size)
            for n in "kv":
                x = self._numbers(count, HEADS, self.spec.head_dim)
                r.tokens[n] = np.concatenate([r.tokens[n], x])
                given[f"{n}_new"].append(x)
        lengths = [r.length if r else 0 for r in rows]
        width = max([len(r.pages) for r in rows if r] + [1])
        table = np.zeros((len(rows), width), np.int32)
        for i, r in enumerate(rows):
            if r:
                table[i, : len(r.pages)] = r.pages
        counts = [count if r else 0 for r, count in zip(rows, new.values(), strict=True)]
        none = np.zeros((0, HEADS, self.spec.head_dim), np.float32)
        return Batch(
            q=self._numbers(len(rows), HEADS * self.spec.group, self.spec.head_dim),
            paged=self.paged,
            lengths=np.array(lengths, np.int32),
            page_table=table,
            budget=self.budget.numbers(),
            capacity=max(1, min(columns := width * self.spec.page_blocks, self.budget.total(columns))),
            scale=0.125,
            tokens={n: np.concatenate([none, *x]) for n, x in given.items()},
            loc=np.array(loc, np.int64),
            row_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            state=self.state,
            slots=np.array([r.slot if r else -1 for r in rows], np.int32),
            fresh=np.array(fresh, np.int32),
        )

    def _numbers(self, *shape: int) -> Any:
        return narrow(self.random.normal(size=shape).astype(np.float32), DTYPES[self.spec.dtype])

    # what must come of it

    def expect(self, new: dict[str, int], b: Batch) -> dict[tuple[int, int], tuple[list[int], torch.Tensor | None]]:
        """What every (request, KV head) row of a decoding step keeps, and its scores; state moves on."""
        found = {}
        for i, name in enumerate(new):
            if name not in self.requests:
                continue
            r = self.requests[name]
            self._summarise(r)
            n = -(-r.length // self.spec.block_size)
            first, last = self.budget.sink, n - self.budget.recent
            for h in range(HEADS):
                if n <= self.budget.total(n):
                    found[i, h] = list(range(n)), None
                    continue
                fields = {k: torch.stack([f[k][h] for f in r.fields[first:last]]) for k in r.fields[0]}
                heads = slice(h * self.spec.group, (h + 1) * self.spec.group)
                q, held = torch.from_numpy(b.q[i, heads]), r.state.read(h, first, last)
                selected, after = oracle.chosen_with(self.flow, self.spec, q, fields, held, 0, first, last - first)
                r.state.write(h, after, first, last)
                found[i, h] = oracle.select_pages(selected, n, self.budget), selected.score.float()
        return found

    def _summarise(self, r: Request) -> None:
        size = self.spec.block_size
        for p in range(len(r.fields), r.length // size):
            k, v = (torch.from_numpy(r.tokens[n][p * size : (p + 1) * size]).transpose(0, 1) for n in "kv")
            r.fields.append(oracle.summaries(self.flow, self.spec, k, v))

    def check_state(self, state: dict[str, Any], *names: str) -> None:
        """What ``state`` has of these requests (all, unless given) is what their own code made of it."""
        for name, r in self.requests.items():
            if names and name not in names:
                continue
            for h in range(HEADS):
                for field_name, want in r.state.kept[h].items():
                    have = torch.from_numpy(np.asarray(state[field_name][r.slot, h]))
                    per_page = have.dim() and self.module.decls[field_name].attrs["state"] == "page"
                    have = have[: len(want)] if per_page else have
                    rtol, atol = CLOSE[want.element_size()]
                    torch.testing.assert_close(
                        have, want.float(), rtol=rtol, atol=atol, msg=lambda m, at=(name, h, field_name): f"{at}: {m}"
                    )


def same_pages(got: list[int], want: list[int], scores: torch.Tensor | None, budget: Budget) -> bool:
    """Whether two selections agree, but for pages that score as the last one kept does."""
    if scores is None or got == want:
        return got == want
    kept = [float(scores[p - budget.sink]) for p in want if 0 <= p - budget.sink < len(scores)]
    slack = 1e-3 * max(1.0, float(scores.abs().max()))
    odd = set(got) ^ set(want)
    return len(got) == len(want) and all(abs(float(scores[p - budget.sink]) - min(kept)) <= slack for p in odd)


class Runner(Protocol):
    """Something that runs the kernels of a flow on batches."""

    def append(self, b: Batch) -> None:
        """``plan`` and ``append``."""

    def decode(self, b: Batch) -> list[list[list[int]]]:
        """All kernels; the pages of each row, by request and KV head."""

    def state(self) -> dict[str, Any]:
        """What is kept, as fp32."""


def live(traffic: Traffic, runner: Runner, *, steps: int = 24, every: int = 4, long: int = 19) -> None:
    """Let requests join, share prefixes, decode and leave, and compare pages in each step and state now and then."""

    def fill(name: str, tokens: int) -> None:
        runner.append(traffic.batch({name: tokens}))

    def compare(step: int, names: dict[str, int]) -> None:
        b = traffic.batch(names)
        got, want = runner.decode(b), traffic.expect(names, b)
        for (r, h), (pages, scores) in want.items():
            where = f"step {step}, row {r}, head {h}: {got[r][h]}, not {pages}"
            assert same_pages(got[r][h], pages, scores, traffic.budget), where
        if step % every == every - 1 or step == steps - 1:
            traffic.check_state(runner.state())

    size = traffic.spec.page_size
    traffic.join("long")
    fill("long", long * size - 3)
    fill("long", 4 * size)
    traffic.join("short")
    fill("short", 3)
    traffic.join("middle")
    fill("middle", 9 * size)
    for step in range(steps):
        if step == 5:
            traffic.join("guest", "long", 11 * size)
            fill("guest", 2)
        if step == 9:
            # another request in the same slot, with as many tokens, of which all but one are another's
            length, slot = traffic.requests["middle"].length // size * size, traffic.requests["middle"].slot
            traffic.leave("middle")
            traffic.join("heir", "long", length)
            assert traffic.requests["heir"].slot == slot
            fill("heir", 1)
        if step == 13:
            traffic.leave("long")
            traffic.join("second")
            fill("second", 14 * size + 1)
        names = [n for n in traffic.requests if (step, n) != (7, "short")]
        traffic.random.shuffle(names)
        names.insert(step % (len(names) + 1), ABSENT)
        compare(step, dict.fromkeys(names, 1))


class Interpreted:
    """A page program under the reference interpreter."""

    def __init__(self, traffic: Traffic, program: Module) -> None:
        self.traffic, self.program = traffic, program
        self.before = Module("page", program.name, dict(program.attrs), dict(program.decls))
        for f in program.functions.values():
            if f.attrs["kind"] in ("plan", "append"):
                self.before.define(f)
        self.counts: list[Counts] = []

    def append(self, b: Batch) -> None:
        run_program(self.before, b)

    def decode(self, b: Batch) -> list[list[list[int]]]:
        self.counts.append(run_program(self.program, b))
        assert b.pages is not None
        return [[b.pages[r, h, : b.counts[r, h]].tolist() for h in range(HEADS)] for r in range(b.requests)]

    def state(self) -> dict[str, Any]:
        return self.traffic.state

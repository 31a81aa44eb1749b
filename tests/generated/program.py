"""A generated flow: its lines with their types, its text as a user would write it, and smaller ones like it."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import vortex

Dim = int | str
"""A size, or the name of a page axis: ``S``, or ``S1`` and ``S2`` of shortlists."""
HEADER = """import torch
import torch.nn.functional as F
import vortex

"""


@dataclass(frozen=True, slots=True)
class Var:
    """A value of the flow: how it is written, its type, and what is known of its numbers."""

    text: str
    shape: tuple[Dim, ...] = ()
    kind: str = "float"
    """``float``, ``int``, ``bool``, ``near`` (a shortlist) or ``selection``."""
    most: float = 1.0
    """No number is larger in magnitude,"""
    bits: int = 0
    """and all are multiples of ``2**-bits``."""

    @property
    def axis(self) -> int | None:
        """Where its page axis is."""
        return next((i for i, d in enumerate(self.shape) if isinstance(d, str)), None)

    @property
    def pages(self) -> str | None:
        return None if self.axis is None else str(self.shape[self.axis])

    @property
    def numel(self) -> int:
        """Numbers of one page."""
        n = 1
        for d in self.shape:
            n *= d if isinstance(d, int) else 1
        return n

    def like(self, other: Var) -> bool:
        """Whether one can stand for the other."""
        return (self.shape, self.kind) == (other.shape, other.kind)


@dataclass(frozen=True, slots=True)
class Line:
    """``var.text = form``, where ``{0}``, ``{1}``, .. in the form are the operands."""

    var: Var
    form: str
    operands: tuple[Var, ...] = ()

    def text(self) -> str:
        return f"{self.var.text} = {self.form.format(*(v.text for v in self.operands))}"


@dataclass(frozen=True, slots=True)
class Program:
    """A whole flow, and the shape and budget that it is run with."""

    seed: int
    spec: vortex.Spec
    budget: vortex.Budget
    declared: tuple[str, ...]
    """Statements of create_cache before it returns: parameters and constants."""
    fields: dict[str, str]
    """Declarations by name, of state too."""
    cache: tuple[Line, ...]
    written: dict[str, Var]
    index: tuple[Line, ...]
    end: Var
    state: dict[str, Var] = field(default_factory=dict)
    """What each state field becomes."""
    exact: bool = True
    """Whether fp32 holds every number of it without rounding, so that all stages agree to the bit."""

    @property
    def name(self) -> str:
        return f"flow{self.seed}"

    @property
    def text(self) -> str:
        """A file that a developer can run by itself."""
        fields = "".join(f'            "{n}": {d},\n' for n, d in self.fields.items())
        written = ", ".join(f'"{n}": {v.text}' for n, v in self.written.items())
        state = ", ".join(f'"{n}": {v.text}' for n, v in self.state.items())
        end = f"{self.end.text}, {{{state}}}" if self.state else self.end.text
        body = [
            "class Generated(vortex.vFlow):",
            f'    """Seed {self.seed}."""\n',
            "    def create_cache(self, spec):",
            *(f"        {s}" for s in self.declared),
            f"        return {{\n{fields}        }}\n" if fields else "        return {}\n",
            "    def forward_cache(self, page):",
            *(f"        {line.text()}" for line in self.cache),
            f"        return {{{written}}}\n",
            "    def forward_indexer(self, q, cache):",
            *(f"        {line.text()}" for line in self.index),
            f"        return {end}\n\n",
            f"SPEC = vortex.{self.spec_text}",
            f"BUDGET = vortex.{self.budget_text}",
        ]
        return HEADER + "\n" + "\n".join(body) + "\n"

    @property
    def spec_text(self) -> str:
        given = {n: getattr(self.spec, n) for n in self.spec.__slots__}
        plain = vortex.Spec(head_dim=given["head_dim"], dtype=given["dtype"], page_size=given["page_size"])
        kept = {n: x for n, x in given.items() if x != getattr(plain, n) or n in ("head_dim", "page_size")}
        return f"Spec({', '.join(f'{n}={x!r}' for n, x in kept.items())})"

    @property
    def budget_text(self) -> str:
        b = self.budget
        first = f"table={[list(r) for r in b.table]}" if b.table else f"{b.pages}"
        ratio = f", ratio={str(b.ratio)!r}" if b.ratio else ""
        return f"Budget({first}{ratio}, sink={b.sink}, recent={b.recent})"

    def flow(self) -> type[vortex.vFlow]:
        """The class, made of the text."""
        file = f"<generated {self.seed}>"
        text = self.text
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        names: dict[str, Any] = {"__name__": "generated"}
        exec(compile(text, file, "exec"), names)  # the text is ours
        made: type[vortex.vFlow] = names["Generated"]
        return made

    def smaller(self) -> Iterator[Program]:
        """Flows with a line, a field or a state less, the boldest first."""
        for name in self.state:
            yield swept(replace(self, state={n: v for n, v in self.state.items() if n != name}))
        for lines in ("index", "cache"):
            body = getattr(self, lines)
            for i in range(len(body) - 1, -1, -1):
                gone = body[i].var
                others = [*body[i].operands, *(x.var for x in body[:i]), *_leaves(body)]
                for other in others:
                    if other.like(gone) and other != gone:
                        yield swept(_without(self, lines, gone, other))
                        break


def _leaves(body: tuple[Line, ...]) -> list[Var]:
    made = {line.var for line in body}
    return list(dict.fromkeys(v for line in body for v in line.operands if v not in made))


def _without(p: Program, lines: str, gone: Var, other: Var) -> Program:
    """``other`` in place of ``gone``."""

    def instead(v: Var) -> Var:
        return other if v == gone else v

    body = tuple(replace(x, operands=tuple(map(instead, x.operands))) for x in getattr(p, lines) if x.var != gone)
    if lines == "cache":
        return replace(p, cache=body, written={n: instead(v) for n, v in p.written.items()})
    return replace(p, index=body, end=instead(p.end), state={n: instead(v) for n, v in p.state.items()})


def _live(body: tuple[Line, ...], ends: list[Var]) -> tuple[Line, ...]:
    needed = set(ends)
    kept = []
    for line in reversed(body):
        if line.var in needed:
            kept.append(line)
            needed |= set(line.operands)
    return tuple(reversed(kept))


def swept(p: Program) -> Program:
    """Without lines and fields that nothing uses; state that is read stays."""
    index = _live(p.index, [p.end, *p.state.values()])
    used = "\n".join([line.text() for line in index] + [p.end.text] + [v.text for v in p.state.values()])
    fields = {n: d for n, d in p.fields.items() if n in p.state or f"cache.{n}" in used}
    written = {n: v for n, v in p.written.items() if n in fields}
    cache = _live(p.cache, list(written.values()))
    whole = used + "\n".join(line.text() for line in cache)
    declared = tuple(s for s in p.declared if s.partition(" = ")[0] in whole)
    return replace(p, index=index, fields=fields, written=written, cache=cache, declared=declared)

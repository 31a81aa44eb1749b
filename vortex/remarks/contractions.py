"""Which contractions over pages tensor cores do, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from vortex.errors import Loc
from vortex.ir.core import Module
from vortex.ir.dialects import flow
from vortex.ir.staging import over_pages
from vortex.remarks.remark import Remark
from vortex.schedules.matrices import contracted_as_stored, why_no_matrix

HELP = (
    "multiply a field of bf16, f16, fp8_e4m3, int8 or int4 as it is stored, along its last axis, with numbers of the "
    "row; of what is computed with it first, such as its square, make a field"
)


@dataclass(frozen=True, slots=True)
class Contraction:
    """A contraction over pages in ``select``."""

    op: str
    """What it computes, as ``sd,gd->sg`` with its shape."""
    loc: Loc | None
    why_scalar: str
    """Why tensor cores do not do it; empty where they do."""
    kernel: str

    @property
    def remark(self) -> Remark:
        """What is said of it."""
        if not self.why_scalar:
            return Remark("tensor-cores", "passed", f"{self.op} runs on tensor cores", "", self.loc, self.kernel)
        why = f"{self.op} runs on scalar units: {self.why_scalar}"
        return Remark("tensor-cores", "missed", why, HELP, self.loc, self.kernel)


def contractions(program: Module) -> list[Contraction]:
    """Every contraction over pages, and whether tensor cores do it."""
    return list(_contractions(program))


def _contractions(program: Module) -> Iterator[Contraction]:
    for f in program.functions.values():
        if f.attrs["kind"] != "select":
            continue
        for o in f.ops:
            if isinstance(o, flow.Dot) and over_pages(o.value):
                why = why_no_matrix(o, partial(contracted_as_stored, program)) or ""
                yield Contraction(_shown(o), o.loc, why, f.name)


def _shown(o: flow.Dot) -> str:
    return f"the contraction {o.attrs['spec']} of {o.a.type} and {o.b.type}"

"""What a remark is, and the one list of the rules that make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vortex.errors import Loc

Sort = Literal["passed", "missed", "analysis"]
"""As LLVM sorts remarks: something was done, something was not and costs time, or how something is."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What remarks of a rule say, and what they are computed from."""

    says: str
    source: str


RULES = {
    "tensor-cores": Rule("whether tensor cores do a contraction over pages, or what is in the way",
                         "the plan of the contraction (`vortex/schedules/matrices.py`)"),
    "arithmetic": Rule("scalar instructions outlast the bytes of a page",
                       "instructions by op, and conversions of narrow types: estimates "
                       "(`vortex/schedules/arithmetic.py`)"),
    "read-again": Rule("a field is read from memory in more than one sweep over the pages, and what the later one "
                       "waits for", "the sweeps of the kernel (`vortex/ir/staging.py`)"),
    "fusion": Rule("which kernels became one, at the line that ends it, or why two of a kind did not",
                   "the decisions of pass `fuse` (`vortex/passes/fuse.py`)"),
    "launches": Rule("a layer takes more kernels than append, select and attend, or select does what append would do",
                     "the kernels of the program"),
    "clusters": Rule("several CTAs share a row of select from its first sweep on, how many sweeps they share, and "
                     "whether the choice",
                     "the knob `cluster`, and the sweeps of the kernel (`vortex/schedules/shared_sweeps.py`)"),
    "spills": Rule("numbers of a kernel do not fit into the registers of a GPU", "the report of ptxas"),
    "occupancy": Rule("an SM holds fewer CTAs than the schedule asks for, and what rules them out",
                      "the report of ptxas, beside the knob `residents`"),
    "near-dense": Rule("select reads 40 % or more of the bytes of dense attention", "the counted bytes"),
    "limiter": Rule("what bounds a kernel, by how much, and what would change it",
                    "times by resource (`vortex/targets/roofline.py`)"),
    "prediction": Rule("predicted times of kernels like this one were off by more than 25 %, or none was ever measured",
                       "the committed measurements beside what is predicted of them (`vortex/targets/predicted.py`)"),
    "knobs": Rule("where the knobs of a kernel came from, and why not from a tuning database",
                  "the schedule's word `from`, and what the databases say of the kernel"),
}  # fmt: skip
"""By name, in the order in which they are told."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that is so, and what would change it."""

    rule: str
    sort: Sort
    message: str
    help: str = ""
    loc: Loc | None = None
    kernel: str = ""
    """Empty where it is of all kernels."""

    def render(self, sort: str = "") -> str:
        """As the command line prints it: like an error, with its place and the way out."""
        where = f"\n  --> {self.loc}" if self.loc is not None else ""
        help = f"\n   = help: {self.help}" if self.help else ""
        return f"{sort or self.sort}[{self.rule}]: {self.message}{where}{help}"

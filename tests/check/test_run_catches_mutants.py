"""``vortex run`` as a judge: page programs with one mistake in them are compiled, and it must find each.

Mutants are made from the text of a page program by rules, one change each. Those that do what the flow does are left
out: on other random data the page interpreter gets the same pages, summaries and outputs from both. What a page program
does not spell out (how a budget is counted, which page is looked up, when one is summarised) is changed in TensorIR.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm_ffi

import vortex
from tests.batches import batch, copy
from vortex.budget import Budget
from vortex.check.verdict import Verdict, judge
from vortex.cli.run import traced_flow
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch, run_program
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import open_library
from vortex.spec import Spec
from vortex.targets.target import TARGETS

pytest.importorskip("tvm")

SMALL = Spec(head_dim=16, group=2, page_size=4, dtype="f32")
LATENT = Spec.of_latent("128+8", 2, page_size=4, dtype="f32")
SPECS = {
    "block_topk": SMALL,
    "centered": SMALL,
    "gqa_block": SMALL,
    "latent_slim": replace(LATENT, head_dim=144, kv_lora_rank=136),
    "latent_topk": LATENT,
    "lserve": replace(SMALL, page_size=32),
    "lserve_centroid": replace(SMALL, page_size=32),
    "masked_quest": SMALL,
    "quest": SMALL,
    "venergy_gated": SMALL,
}
"""The library's flows at sizes where each term is there: LServe needs sub-pages, the slim latent a part left out."""
BUDGET = Budget(8)
MOST = 8
"""Mutants of one flow that are compiled."""


class Biased(vortex.vFlow):
    """Terms beside the product of queries and keys: a bias by a logarithm, and a gate."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "energy": vortex.Field(), "gate": vortex.Field()}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0), "energy": page.v.norm(dim=-1).mean(), "gate": page.v.mean()}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.mean @ q.mean(0) + torch.log(cache.energy)) * torch.sigmoid(cache.gate))


LINE = re.compile(r"^ +%(\w+) = (\w+\.\w+)\((.*?)\)(.*?) : (\w+)\[(.*?)\]( +@.*)?$")
SWAPPED = {
    "reduce_max": ("reduce_min", "reduce_sum"),
    "reduce_min": ("reduce_max", "reduce_sum"),
    "reduce_sum": ("reduce_max",),
    "reduce_mean": ("reduce_max", "reduce_min"),
    "maximum": ("minimum", "add"),
    "minimum": ("maximum",),
    "add": ("sub", "mul"),
    "sub": ("add",),
    "mul": ("add", "sub"),
    "div": ("mul",),
    "sqrt": ("exp",),
}
"""Ops that a mistake may put for one another."""


@dataclass(frozen=True)
class Slip:
    """Another text in the TensorIR of a kernel."""

    kernel: str
    old: str
    new: str


SLIPS = {
    # plan
    "a partial page is not counted": Slip("plan", "(lengths[r] + 3) // 4", "T.max(1, lengths[r] // 4)"),
    "a page too many is counted": Slip("plan", "(lengths[r] + 3) // 4", "(lengths[r] + 4) // 4"),
    "the length of another request": Slip("plan", "(lengths[r] + 3)", "(lengths[B - 1 - r] + 3)"),
    "candidates begin a page early": Slip("plan", "plan[2, r] = T.Select(fits, 0, budget[1])", "plan[2, r] = 0"),
    "candidates begin after the recent": Slip("plan", "T.Select(fits, 0, budget[1])", "T.Select(fits, 0, budget[2])"),
    "recent pages are scored": Slip("plan", "T.Select(fits, 0, n - reserved)", "T.Select(fits, 0, n - budget[1])"),
    "one candidate is left out": Slip("plan", "T.Select(fits, 0, n - reserved)", "T.Select(fits, 0, n - reserved - 1)"),
    # budget
    "reserved pages come out of the budget": Slip("plan", "budget[0] + reserved", "budget[0]"),
    "sink twice, recent not": Slip("plan", "budget[1] + budget[2]", "budget[1] + budget[1]"),
    "one page too few": Slip("plan", 'T.Cast("int32", total)', 'T.Cast("int32", total) - 1'),
    "one page too many": Slip("plan", 'T.Cast("int32", total)', 'T.Cast("int32", total) + 1'),
    "the ratio is rounded up": Slip(
        "plan", '// T.Cast("int64", budget[4])', '// T.Cast("int64", budget[4]) + T.int64(1)'
    ),
    "the ratio is that of what is not kept": Slip("plan", "budget[3]", "(budget[4] - budget[3])"),
    "no ratio": Slip("plan", '* T.Cast("int64", n)', "* T.int64(0)"),
    # stale pages
    "the first page that fills is not summarised": Slip("append", "(now - new) // 4)", "(now - new) // 4 + 1)"),
    "the last page that fills is not summarised": Slip(
        "append", "now // 4 - full_before", "(now - 1) // 4 - full_before"
    ),
    "pages that fill in decoding are not summarised": Slip("append", "now // 4 - full_before", "new // 4"),
    "the page before is summarised": Slip("append", "page_table[r, p]", "page_table[r, T.max(0, p - 1)]"),
    "another request's page is summarised": Slip("append", "page_table[r, p]", "page_table[T.int64(0), p]"),
    "the page before is scored": Slip("select", "page_table[r, first + s]", "page_table[r, first + s - 1]"),
    "another request's page is scored": Slip(
        "select", "page_table[r, first + s]", "page_table[B - T.int64(1), first + s]"
    ),
    "the page before is attended to": Slip("attend", "page_table[r, logical]", "page_table[r, T.max(0, logical - 1)]"),
    "the last page is attended to as if it was full": Slip("attend", "T.min(4, length - logical * 4)", "4"),
    "the last token is left out": Slip(
        "attend", "T.min(4, length - logical * 4)", "T.min(4, length - 1 - logical * 4)"
    ),
}
"""Mistakes in plans, budgets and pages, in the kernels of quest."""


@dataclass(frozen=True)
class Mutant:
    name: str
    text: str


def mutants(text: str) -> Iterator[Mutant]:
    """Every program that one of the rules makes of ``text``."""
    lines = text.splitlines()
    kernel = ""
    bounds = {i: end(lines, i) for i in range(len(lines)) if lines[i].startswith("  kernel @")}
    last = 0
    shapes: dict[str, str] = {}
    for i, line in enumerate(lines):
        if i in bounds:
            kernel, last, shapes = line.split("@")[1].split("(")[0], bounds[i], {}

        def made(what: str, *new: str, at: int = i, kernel: str = kernel) -> Mutant:
            return Mutant(f"{kernel}: {what}", "\n".join([*lines[:at], *new, *lines[at + 1 :], ""]))

        def renamed(what: str, old: str, new: str, at: int = i, last: int = last, kernel: str = kernel) -> Mutant:
            rest = [re.sub(rf"%{old}\b", f"%{new}", x) for x in lines[at + 1 : last]]
            return Mutant(f"{kernel}: {what}", "\n".join([*lines[:at], *rest, *lines[last:], ""]))

        if found := LINE.match(line):
            name, op, operands, shape = found.group(1, 2, 3, 6)
            given = re.findall(r"%(\w+)", operands)
            short = op.split(".")[1]
            if op.startswith("flow.") and short not in ("reshape", "transpose"):
                for other in dict.fromkeys(given):
                    if shapes.get(other) != shape:
                        continue
                    if '"scratch"' in line:  # it is kept between passes
                        same = line.replace(f"{op}({operands})", f"flow.maximum(%{other}, %{other})")
                        yield made(f"%{name} ({short}) is its operand %{other}", same)
                    else:
                        yield renamed(f"%{name} ({short}) is its operand %{other}", name, other)
            for other in SWAPPED.get(short, ()):
                if not (other == "reduce_sum" and "keepdims" in line):
                    yield made(f"%{name} by {other}, not {short}", line.replace(f"{op}(", f"flow.{other}("))
            if number := re.search(r"number = ([-\d.e]+)", line):
                for value in (float(number[1]) * 3 + 1, -float(number[1]) - 1):
                    yield made(f"%{name} is {value}", line.replace(number[0], f"number = {value}"))
            if len(given) == 2 and given[0] != given[1] and short in ("sub", "div"):
                a, b = given
                yield made(f"%{name} with operands exchanged", line.replace(operands, f"%{b}, %{a}"))
            for other, known in shapes.items():
                if op == "flow.dot" and known == shapes.get(given[0]) and other not in given:
                    yield made(f"%{name} of %{other}", line.replace(f"%{given[0]}", f"%{other}"))
            if op == "page.load":
                buffer = re.search(r'buffer = "(\w+)"', line)
                assert buffer
                for other in alike(text, buffer[1]):
                    yield made(f"@{other} for @{buffer[1]}", line.replace(f'"{buffer[1]}"', f'"{other}"'))
            if op == "page.attend":
                exchanged = line.replace('keys = "k", values = "v"', 'keys = "v", values = "k"')
                yield made("K and V exchanged", exchanged)
                yield made("K for V", line.replace('values = "v"', 'values = "k"'))
            shapes[name] = shape
        elif topk := re.match(r"^ +%pages = flow.topk\(%(\w+)\)( <.*?>)", line):
            source = next(x for x in lines[:i][::-1] if f"%{topk[1]} =" in x)
            found = LINE.match(source)
            assert found
            notes = re.sub(r'"(tile|scratch)"(, slot = \d+)?', '"inline"', found[4][found[4].find("<") :])
            negated = f"    %turned = flow.neg(%{topk[1]}) {notes} : f32[{found[6]}]"
            yield made("the score negated", negated, line.replace(f"(%{topk[1]})", "(%turned)"))
        elif (store := re.match(r"^ +page.store\(%(\w+)\)", line)) and kernel == "append":
            for other, known in shapes.items():
                if other != store[1] and known == shapes[store[1]]:
                    yield made(f"%{other} stored for %{store[1]}", line.replace(f"%{store[1]}", f"%{other}"))
        elif "page.scatter" in line:
            for a, b in (("k_new", "v_new"), ("v_new", "k_new")):
                if f'"{a}"' in line:
                    yield made(f"@{b} stored for @{a}", line.replace(f'"{a}"', f'"{b}"'))


def end(lines: list[str], start: int) -> int:
    """The line that closes the kernel of line ``start``."""
    return next(i for i in range(start, len(lines)) if lines[i] == "  }")


def alike(text: str, buffer: str) -> list[str]:
    """Pools or fields with the same type and role."""
    found = {b[1]: (b[2], b[3]) for b in re.finditer(r"buffer @(\w+) : (.*?) \{.*role = \"(\w+)\"", text)}
    return [b for b, kind in found.items() if b != buffer and kind == found[buffer] and kind[1] in ("pool", "field")]


@lru_cache
def flow_of(name: str) -> tuple[Module, Module]:
    """A flow's IR and its page program for the CPU."""
    flow = trace(Biased() if name == "biased" else find_flow(name), SPECS.get(name, SMALL))
    return flow, compile_flow(flow, to="page").programs["cpu"]


def real_mutants(name: str) -> dict[str, Module]:
    """The mutants of a flow that differ from it, by what is wrong with them."""
    flow, program = flow_of(name)
    text = print_module(program, locs=False)
    pages = int(program.attrs["page_size"])
    data = [varied(flow, [40 * pages + 1, 25 * pages], seed) for seed in range(2)]
    right = [ran(program, b) for b in data]
    found: dict[str, Module] = {}
    for mutant in mutants(text):
        try:
            module = parse_module(mutant.text)
            wrong = [ran(module, b) for b in data]
        except VortexError:
            continue  # it is no program
        if any(unlike(a, b) for a, b in zip(right, wrong, strict=True)):
            found[mutant.name] = module
    return found


def varied(flow: Module, lengths: list[int], seed: int) -> Batch:
    """A batch whose tokens differ in size."""
    b = batch(flow, lengths, budget=BUDGET, integers=False, seed=seed)
    rng = np.random.default_rng(seed)
    for x in b.tokens.values():
        x *= np.exp(0.5 * rng.normal(size=(*x.shape[:2], 1))).astype(np.float32)
    return b


def ran(program: Module, data: Batch) -> Batch:
    b = copy(data)
    run_program(program, b)
    return b


def unlike(a: Batch, b: Batch) -> bool:
    """Whether two results differ by more than rounding."""
    assert a.pages is not None
    if any(not np.allclose(x, b.paged[n], 1e-3, 1e-4, equal_nan=True) for n, x in a.paged.items()):
        return True
    return not np.array_equal(a.pages, b.pages) or not np.allclose(a.out, b.out, 1e-3, 1e-4)


def artifact(name: str, program: Module, folder: Path) -> Path:
    """An artifact of ``program`` that says it was made from the flow ``name``."""
    from vortex.codegen.emit import emit_program
    from vortex.compilation.lowered import Lowered

    flow, _ = flow_of(name)
    low = Lowered(TARGETS["cpu"], program, emit_program(program, "cpu"), print_module(flow))
    made = compile_flow([low], out=folder / "mutant.vxa")
    assert made.artifact is not None
    return made.artifact


def verdict(made: Path, functions: Mapping[str, Any] | None = None) -> dict[str, Verdict]:
    """What ``vortex run`` finds on an artifact, some functions of whose library are others."""
    library = open_library(made, "cpu")
    library = replace(library, functions={**library.functions, **(functions or {})})
    decoder = Decoder(library, budget=BUDGET, debug=True)
    page = decoder.spec.page_size
    found, _ = judge(decoder, traced_flow(str(made)), [5, 12 * page + 2, 62 * page + 2])
    return found


def caught(name: str, program: Module, folder: Path) -> bool:
    return not all(v.good("f32") for v in verdict(artifact(name, program, folder)).values())


def chosen(name: str) -> dict[str, Module]:
    """At most :data:`MOST` mutants, from all over the program, those of the selection before others."""
    found = real_mutants(name)
    ranked = sorted(found, key=lambda label: not label.startswith("select"))
    every = [label for label in ranked if label.startswith("select")][: MOST - 3]
    rest = [label for label in ranked if label not in every]
    step = max(1, len(rest) // (MOST - len(every)))
    return {label: found[label] for label in [*every, *rest[::step]][:MOST]}


QUICK = {
    "venergy_gated": "select: %mul (mul) is its operand %dot",
    "gqa_block": "select: %mul (mul) is its operand %logits",
    "masked_quest": "select: %where (where) is its operand %bound",
    "quest": "select: @hi for @lo",
}


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_caught_and_its_original_is_not(name: str, tmp_path: Path) -> None:
    assert not caught(name, flow_of(name)[1], tmp_path)
    assert caught(name, real_mutants(name)[QUICK[name]], tmp_path)


def test_a_lost_bias_and_a_lost_gate_are_caught(tmp_path: Path) -> None:
    lost = ("select: %add (add) is its operand %dot", "select: %mul (mul) is its operand %add")
    every = real_mutants("biased")
    assert not caught("biased", flow_of("biased")[1], tmp_path)
    assert [label for label in lost if not caught("biased", every[label], tmp_path)] == []


@pytest.mark.full
def test_there_are_fifty_mutants_of_the_library() -> None:
    assert sum(len(chosen(name)) for name in SPECS) >= 50


@pytest.mark.full
@pytest.mark.parametrize("name", SPECS)
def test_every_mutant_is_caught(name: str, tmp_path: Path) -> None:
    assert all(v.good("f32") for v in verdict(artifact(name, flow_of(name)[1], tmp_path)).values())
    assert [label for label, m in chosen(name).items() if not caught(name, m, tmp_path)] == []


@pytest.fixture(scope="module")
def quest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact("quest", flow_of("quest")[1], tmp_path_factory.mktemp("quest"))


def slipped(slip: Slip, folder: Path) -> dict[str, Any]:
    """A kernel of quest with a slip in it, as a function by its symbol."""
    from vortex.codegen.build.library import build_target
    from vortex.codegen.emit import emit_program

    kernel = emit_program(flow_of("quest")[1], "cpu")[slip.kernel]
    assert slip.old in kernel.text
    kernel = replace(kernel, text=kernel.text.replace(slip.old, slip.new))
    library = folder / f"{len(list(folder.iterdir()))}.so"
    build_target(TARGETS["cpu"], {slip.kernel: kernel}, library)
    return {kernel.symbol: tvm_ffi.load_module(str(library))[kernel.symbol]}


def missed(names: Iterable[str], made: Path, folder: Path) -> list[str]:
    """The slips that ``vortex run`` does not see."""
    found = []
    for what in names:
        (here := folder / SLIPS[what].kernel).mkdir(exist_ok=True)
        if all(v.good("f32") for v in verdict(made, slipped(SLIPS[what], here)).values()):
            found.append(what)
    return found


QUICK_SLIPS = (
    "recent pages are scored",
    "sink twice, recent not",
    "the page before is summarised",
    "the page before is scored",
)


def test_slips_in_plan_budget_and_pages_are_caught(quest: Path, tmp_path: Path) -> None:
    assert all(v.good("f32") for v in verdict(quest).values())
    assert missed(QUICK_SLIPS, quest, tmp_path) == []


@pytest.mark.full
def test_every_slip_is_caught(quest: Path, tmp_path: Path) -> None:
    assert missed(SLIPS, quest, tmp_path) == []

"""A kernel kind that this file alone declares: no list anywhere else names it, and every stage takes it.

``tally`` runs once for each request that ``plan`` has planned and adds up the four numbers of its plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.batches import batch
from tests.cuda.harness import Kernels, tensors
from vortex.artifact.folder import read_manifest
from vortex.artifact.manifest import KernelEntry
from vortex.budget import Budget, Cap
from vortex.check.synthetic_batch import Trial
from vortex.cli.cross import predicted_bytes
from vortex.cli.main import main
from vortex.codegen.emit import emit_program
from vortex.codegen.templates import TEMPLATES, Template, register
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Decl, Function, Module, Value
from vortex.ir.dialects import flow, page
from vortex.ir.interpret import Row
from vortex.ir.interpret_page import MEANING, Launch, run_program
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.types import TensorType, i32
from vortex.ir.verify import verify
from vortex.kinds.buckets import Bucket, bucket_of
from vortex.kinds.kind import KINDS, Argument, KernelKind, declare
from vortex.passes.manager import DEFAULT_PIPELINE, PASSES, Pass, PassContext, run_pipeline
from vortex.passes.manager import register as register_pass
from vortex.runtime.decoder import load
from vortex.runtime.scratch import Layout, Size
from vortex.schedules.knobs import Knobs, knob, read_knobs
from vortex.schedules.space import space_of
from vortex.schedules.template import DECLARED, Schedulable
from vortex.spec import Spec
from vortex.targets.target import TARGETS, Target
from vortex.tune import worker
from vortex.tune.record import Record
from vortex.tune.store import Store

pytest.importorskip("tvm")

SPEC = Spec(head_dim=64, group=2)
LENGTHS = [120, 200, 500, 160]
BUDGET = Budget(4)
PLAN = TensorType(i32, (4,))


@dataclass(frozen=True, slots=True)
class TallyKnobs(Knobs):
    step: int = knob(1, "requests that one turn of the loop takes, or warps of a CTA", least=1, most=32)


class CpuTally(Schedulable[TallyKnobs]):
    target, kind, version, knobs = "cpu", "tally", 3, TallyKnobs

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> TallyKnobs:
        return TallyKnobs(**given)

    def space(self, program: Module, f: Function, target: Target) -> Iterable[TallyKnobs]:
        return [TallyKnobs(1), TallyKnobs(2)]


class CudaTally(CpuTally):
    target = "cuda"


def step_of(f: Function) -> int:
    return read_knobs(TallyKnobs, f.attrs["schedule"]).step


def sum_of_plan(args: Any, r: Any) -> None:
    from vortex.codegen.tir import put

    plan = args.buffers["plan"]
    put(args.buffers["tally"], plan[0, r] + plan[1, r] + plan[2, r] + plan[3, r], r)


def arguments(program: Module) -> Any:
    from vortex.codegen.arguments import Arguments

    args = Arguments(program)
    args.tensor("plan", (4, "B"), "int32")
    args.tensor("tally", ("B",), "int32")
    return args


def emit_on_cpu(program: Module, f: Function) -> list[str]:
    from vortex.codegen.tir import T, loop, when

    args = arguments(program)
    step = step_of(f)
    requests = args.size("B")
    with loop("turn", T.floordiv(requests + (step - 1), T.int32(step))) as turn:
        for i in range(step):
            with when(turn * step + i < requests):
                sum_of_plan(args, turn * step + i)
    return list(args.names)


def emit_on_gpu(program: Module, f: Function) -> list[str]:
    from vortex.codegen.cuda.warp import Cta
    from vortex.codegen.tir import T, let

    args = arguments(program)
    T.device_entry()
    T.cta_id([1])
    warp, lane = T.warp_id([step_of(f)]), T.lane_id([32])
    warp, lane = let("warp", warp), let("lane", lane)
    cta = Cta(warp, lane, let("thread", warp * 32 + lane), 32 * step_of(f))
    with cta.share("r", args.size("B")) as r:
        sum_of_plan(args, r)
    return list(args.names)


def meaning(k: Launch) -> None:
    """What ``tally`` does to a batch."""
    found = []
    for r in range(k.batch.requests):
        env: dict[Value, Any] = {}
        for o in k.f.ops:
            if isinstance(o, page.Load):
                env[o.value] = k.batch.plan[:, r]
                k.read(o.buffer, 1)
            elif isinstance(o, page.Store):
                found.append(k.stored(o.buffer, env[o.x]))
                k.write(o.buffer, 1)
            else:
                Row(k.program, layer=k.batch.layer).run([o], env)
    k.batch.others["tally"] = np.array(found, np.int32)


@dataclass(frozen=True, slots=True)
class AddTally(Pass):
    """Adds the kernel and its output to a page program."""

    def run(self, module: Module, ctx: PassContext) -> Module:
        module.declare(Decl("buffer", "tally", TensorType(i32, ()), {"layout": "request", "role": "output"}))
        f = Function("kernel", "tally", attrs={"kind": "tally", "domain": KINDS["tally"].domain})
        numbers = f.add(page.Load("plan", PLAN), "numbers")
        f.append(page.Store(f.add(flow.ReduceSum(numbers, (0,)), "total"), "tally"))
        module.define(f)
        return module


def declare_tally() -> None:
    """All there is to a kind: its declaration, a template for each target, what it does to a batch."""
    declare(
        KernelKind(
            name="tally",
            about="the sum of a request's plan",
            order=15,
            domain="planned_requests",
            ops=("page.load", "page.store", "flow.reduce_*"),
            axes=("rows",),
            arguments=(
                Argument("plan", "decoder", "reads", "i32", (4, "requests")),
                Argument("tally", "call", "writes", "i32", ("requests",)),
                Argument("tally_scratch", "decoder", "writes", "i32", (2, "rows")),
            ),
        )
    )
    register(Template.of(CpuTally, emit_on_cpu))
    register(Template.of(CudaTally, emit_on_gpu))
    MEANING["tally"] = meaning


@pytest.fixture(autouse=True)
def tally(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tables: tuple[dict[Any, Any], ...] = (KINDS, TEMPLATES, MEANING)
    before = [dict(table) for table in tables]
    declare_tally()
    register_pass("add-tally", stage="page", tag="exact", version=1)(AddTally)
    monkeypatch.setitem(DEFAULT_PIPELINE, "page", f"add-tally,{DEFAULT_PIPELINE['page']}")
    yield
    del PASSES["add-tally"]
    DECLARED[:] = [s for s in DECLARED if s.kind != "tally"]
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def program_for(target: str) -> Module:
    return compile_flow("quest", spec=SPEC, targets=[TARGETS[target]], to="page").programs[target]


def test_it_compiles_runs_and_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [k.order for k in KINDS.values()] == sorted(k.order for k in KINDS.values())
    made = compile_flow("quest", spec=SPEC, out=tmp_path / "quest.vxa")
    assert made.artifact is not None
    decoder = load(made.artifact, budget=BUDGET)
    b = batch(trace(find_flow("quest"), SPEC), LENGTHS, budget=BUDGET)
    k, v = (torch.zeros(b.paged[n].shape, dtype=torch.bfloat16) for n in ("k", "v"))
    fields = {f.name: torch.zeros(*k.shape[:2], *f.tile, dtype=torch.bfloat16) for f in decoder.fields}
    decoder.bind(0, k, v, fields)
    found = torch.full((len(LENGTHS),), -1, dtype=torch.int32)
    decoder.plan(torch.from_numpy(b.lengths), torch.from_numpy(b.page_table))
    assert found.tolist() == [-1] * 4, "no other call launches it"
    decoder.launch("tally", 0, tally=found)
    # pages, pages kept, first candidate, candidates: by the rules of the budget (4 + 1 + 2 pages of 16 tokens)
    assert found.tolist() == [n + 7 + 1 + (n - 3) for n in (8, 13, 32, 10)]
    with pytest.raises(VortexError, match="missing or unknown: \\['tally'\\]"):
        decoder.launch("tally", 0)
    with pytest.raises(VortexError, match=r"\[4\] is needed"):
        decoder.launch("tally", 0, tally=torch.zeros(3, dtype=torch.int32))
    with pytest.raises(VortexError, match="of the kinds that no other call launches"):
        decoder.launch("select", 0)
    capsys.readouterr()
    assert main(["info", str(made.artifact)]) == 0
    assert [line.split()[2:4] for line in capsys.readouterr().out.splitlines() if " tally " in line] == [["tally"] * 2]
    assert main(["kinds"]) == 0
    assert "cpu.tally cuda.tally" in capsys.readouterr().out
    assert main(["run", str(made.artifact)]) == 0, "the other kernels do what they did"


def test_it_runs_in_a_call_of_the_decoder_that_it_names(tmp_path: Path) -> None:
    tally = Argument("tally", "decoder", "writes", "i32", ("requests",))
    KINDS["tally"] = replace(KINDS["tally"], call="plan", arguments=(KINDS["tally"].arguments[0], tally))
    made = compile_flow("quest", spec=SPEC, out=tmp_path / "quest.vxa")
    assert made.artifact is not None
    trial = Trial(load(made.artifact, budget=BUDGET), 2, 64, seed=1)
    for i, length in enumerate(LENGTHS):
        trial.join(f"r{i}", length - 1)
    trial.step()
    planned = trial.decoder._planned
    assert planned is not None
    step = planned.step
    assert step.shared["tally"].tolist() == step.shared["plan"].sum(0).tolist()
    assert step.shared["tally"].tolist() == [n + 7 + 1 + (n - 3) for n in (8, 13, 32, 10)]


def test_it_is_verified_printed_and_interpreted_and_its_bytes_are_counted() -> None:
    program = program_for("cpu")
    again = parse_module(print_module(program))
    verify(again)
    assert print_module(again) == print_module(program)
    b = batch(trace(find_flow("quest"), SPEC), LENGTHS, budget=BUDGET)
    counts = run_program(program, b)
    assert b.others["tally"].tolist() == b.plan.sum(0).tolist()
    assert counts.of("tally", "plan").read == 16 * len(LENGTHS)
    assert counts.of("tally", "tally").written == 4 * len(LENGTHS)
    assert counts.launches == len(program.functions)
    entry = KernelEntry("tally", "tally", "s", ("plan", "tally"), schedule={"bytes_per_page": 8})
    assert predicted_bytes(entry, [9, 9], SPEC, BUDGET, Cap()) == 0, "it reads no pages"


def test_what_its_declaration_does_not_allow_is_refused() -> None:
    program = program_for("cpu")
    f = program.functions["tally"]
    f.attrs["domain"] = "rows"
    with pytest.raises(VortexError, match="not a kernel of a known kind and its domain"):
        verify(program)
    f.attrs["domain"] = "planned_requests"
    f.append(page.Plan("plan", 16))
    with pytest.raises(VortexError, match=r"a kernel of kind 'tally' holds .* and not page\.plan"):
        verify(program)


def test_scratch_that_it_declares_is_made() -> None:
    entry = KernelEntry("tally", "tally", "s", ("plan", "tally", "tally_scratch"))
    size = Size(8, 64, 16)
    made = Layout.of([entry], 2, 1, dense=False).buffers(size, size)
    assert made["tally_scratch"] == (torch.int32, (2, 16))


def test_its_cuda_text_does_the_same() -> None:
    source = trace(find_flow("quest"), SPEC)
    program = run_pipeline(source, f"outline,{DEFAULT_PIPELINE['page']}", PassContext(TARGETS["sm_90a"]))
    b = batch(source, LENGTHS, budget=BUDGET)
    kernels = Kernels.of({"p": program}, ["plan", "tally"])
    given = tensors(kernels, "p", b) | {"tally": torch.full((len(LENGTHS),), -1, dtype=torch.int32)}
    kernels.run("p", given, ["plan", "tally"])
    run_program(program, b)
    assert given["tally"].tolist() == b.others["tally"].tolist()


def test_its_space_is_that_of_its_template() -> None:
    for target in ("cpu", "sm_90a"):
        program = program_for(target)
        space = space_of(program, program.functions["tally"], TARGETS[target])
        assert space is not None
        assert space.template == f"{TARGETS[target].kind}.tally@3"
        assert (space.default, len(space)) == ({"step": 1}, 2)
        f = program.functions["tally"]
        f.attrs["schedule"] = {**f.attrs.get("schedule", {}), "step": 2}
        assert emit_program(program, target)["tally"].schedule["step"] == 2
    assert bucket_of("tally", 100, 7, 3) == Bucket(128, 0, 0)


def measuring(connection: Connection, path: str) -> None:
    """A worker that knows the kind: it is another process."""
    declare_tally()
    worker.main(connection, path)


def test_it_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VORTEX_DB", str(tmp_path / "tune.db"))
    monkeypatch.setattr("vortex.tune.measure.main", measuring)
    shape = "batch=4,kv_heads=2,tokens=500,kept=12"
    words = ["quest", "--heads", "4/2", "--head-dim", "64", "--shapes", shape, "--jobs", "1", "--rounds", "2"]
    assert main(["tune", *words, "--kinds", "tally", "--budget", "60s"]) == 0
    with Store(tmp_path / "tune.db") as store:
        found: list[Record] = list(store.records("tally"))
    assert {r.config for r in found} == {(("step", 1),), (("step", 2),)}
    assert all(r.us and r.samples[0].checked and dict(r.env)["template"] == "cpu.tally@3" for r in found)
    assert {r.key.bucket for r in found} == {Bucket(8, 0, 0)}
    assert main(["compile", "quest", "--heads", "4/2", "--head-dim", "64", "-o", "tuned.vxa"]) == 0
    [mine] = [k for k in read_manifest("tuned.vxa").targets["cpu"].kernels if k.kind == "tally"]
    # which of the two is for the clock to say: the calmer, then the faster
    [chosen] = [r for r in found if mine.schedule["from"] == f"db:{r.id[:12]}"]
    assert mine.schedule["step"] == dict(chosen.config)["step"]

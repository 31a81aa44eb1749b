"""The scratch that kernels of a GPU share is in the page program, as its templates take it, and in no hash."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vortex.codegen.emit import emit_program
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow.flow import library_names
from vortex.ir import digest
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.scratch import is_scratch
from vortex.kinds.kind import KINDS
from vortex.passes.manager import PassContext, run_pipeline
from vortex.schedules.check import check_program
from vortex.schedules.template import declarations
from vortex.spec import Spec
from vortex.targets.target import TARGETS

GPUS = [t.name for t in TARGETS.values() if t.kind == "cuda"]
VISIBLE_OTHERWISE = {"plan", "budget", "request_budget", "workspace"}
"""What the decoder gives on every target, too: the plan's buffer, what ``page.plan`` reads, where ``plan-memory`` puts
values."""


def spec_of(flow: str) -> Spec:
    return Spec.of_latent("512+64", 20, page_size=32) if flow.startswith("latent") else Spec()


def scheduled(flow: str, target: str) -> Module:
    return compile_flow(flow, spec=spec_of(flow), targets=[TARGETS[target]], to="page").programs[target]


def edited(program: Module, old: str, new: str) -> Module:
    """What a dump of the program says after somebody has changed it."""
    text = print_module(program)
    assert old in text
    return parse_module(text.replace(old, new))


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("flow", library_names())
def test_kernels_take_the_scratch_that_the_program_declares(flow: str, target: str) -> None:
    program = scheduled(flow, target)
    declared = {n.removeprefix("scratch.") for n, d in program.decls.items() if is_scratch(d)}
    taken: set[str] = set()
    for name, source in emit_program(program, target).items():
        f = program.functions[str(source.schedule.get("variant_of", name))]
        given = KINDS[source.kind].scratch
        args = [a for a in source.args if a in given and a not in VISIBLE_OTHERWISE]
        assert args == list(f.attrs.get("scratch", {}))
        assert all(f.attrs["scratch"][a] == given[a].access for a in args)
        taken |= set(args)
    assert declared == taken == {"work", "arrivals", "partials"}


def test_what_each_kernel_does_to_it() -> None:
    program = scheduled("quest", "sm_90a")
    assert {f.name: f.attrs.get("scratch") for f in program.functions.values()} == {
        "plan": {"work": "writes", "arrivals": "writes"},
        "append": None,
        "select": {"work": "reads", "arrivals": "updates"},
        "attend": {"work": "reads", "partials": "updates", "arrivals": "updates"},
    }
    found = [(d.name, str(d.type), d.attrs["shape"]) for d in program.decls.values() if is_scratch(d)]
    assert sorted(found) == [
        ("scratch.arrivals", "i32[]", ("arrivals",)),
        ("scratch.partials", "f32[]", ("partial_rows", "partial_heads", "partial_words")),
        ("scratch.work", "i32[]", (2, "work_list")),
    ]


def test_a_program_for_a_cpu_has_none_and_scheduling_anew_begins_anew() -> None:
    cpu, gpu = scheduled("quest", "cpu"), scheduled("quest", "sm_90a")
    assert not any(map(is_scratch, cpu.decls.values()))
    assert not any("scratch" in f.attrs for f in cpu.functions.values())
    text = print_module(gpu)
    assert print_module(run_pipeline(parse_module(text), "schedule", PassContext(TARGETS["sm_90a"]))) == text
    for f in gpu.functions.values():
        f.attrs.pop("schedule", None)
    assert print_module(run_pipeline(gpu, "schedule", PassContext(TARGETS["cpu"]))) == print_module(cpu)


def test_it_enters_no_hash() -> None:
    cpu, gpu = scheduled("quest", "cpu"), scheduled("quest", "sm_90a")
    assert digest.structural(cpu) == digest.structural(gpu)
    for name, f in cpu.functions.items():
        assert digest.kernel(cpu, f) == digest.kernel(gpu, gpu.functions[name])
        assert digest.structural_of(f) == digest.structural_of(gpu.functions[name])


@pytest.mark.parametrize(
    ("flow", "knob", "value", "fact"),
    [("quest", "stages", 2, "bytes_in_flight"), ("latent_topk", "heads", 8, "row_counters")],
)
def test_edited_knobs_leave_the_declarations_true(flow: str, knob: str, value: int, fact: str) -> None:
    """Even where a size, here the number of ``arrivals``, follows from a knob: the declaration says by which name."""
    program = scheduled(flow, "sm_90a")
    old, new = f"{knob} = {program.functions['attend'].attrs['schedule'][knob]}", f"{knob} = {value}"
    again = edited(program, old, new)
    before, after = (emit_program(p, "sm_90a")["attend"] for p in (program, again))
    assert before.text != after.text and before.schedule[fact] != after.schedule[fact]
    assert before.args == after.args
    assert print_module(again).replace(new, old) == print_module(program)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('scratch = {work = "reads", arrivals = "updates"}', 'scratch = {queue = "reads"}', "and not 'queue'"),
        ('scratch = {work = "reads", arrivals = "updates"}', 'scratch = {work = "writes"}', "'select' reads 'work'"),
        ('scratch = {work = "reads", arrivals = "updates"}', "scratch = 3", "what is done to each buffer, by name"),
        ("@scratch.work : i32[]", "@scratch.works : i32[]", "names scratch 'work', but no @scratch.work"),
        ("@scratch.work : i32[]", "@scratch.work : f32[]", "is i32"),
        ('shape = [2, "work_list"]', 'shape = [3, "work_list"]', "@scratch.work is i32"),
        ('layout = "step"', 'layout = "batched"', "'step'"),
        ('layout = "request"', 'layout = "step"', "for role 'scratch' alone"),
        ('page.plan() {buffer = "plan"', 'page.plan() {buffer = "scratch.work"', "no op names"),
        ("  kernel @plan", "  buffer @scratch.budget : i32[] {layout = \"step\", role = \"scratch\", shape = [7]}\n"
         "  kernel @plan", "no kernel names buffer @scratch.budget"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(old: str, new: str, why: str) -> None:
    program = scheduled("quest", "sm_90a")
    with pytest.raises(VortexError) as e:
        edited(program, old, new)
    assert e.value.code == "VX2008" and why in str(e.value)


def test_a_kernel_says_all_that_its_template_takes() -> None:
    program = scheduled("quest", "sm_90a")
    less = edited(program, 'scratch = {work = "reads", arrivals = "updates"}', 'scratch = {work = "reads"}')
    with pytest.raises(VortexError, match="which pass 'schedule' writes"):
        emit_program(less, "sm_90a")
    assert print_module(run_pipeline(less, "schedule", PassContext(TARGETS["sm_90a"]))) == print_module(program)


def test_a_field_may_have_the_name_of_an_argument() -> None:
    text = print_module(scheduled("quest", "sm_90a")).replace("@lo :", "@work :").replace('"lo"', '"work"')
    program = parse_module(text)
    check_program(program, TARGETS["sm_90a"])
    args = emit_program(program, "sm_90a")["select"].args
    assert {"field.work", "work"} <= set(args)


def test_every_template_names_scratch_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    for mine in declarations():
        assert {a.name for a in mine.taken()} == set(mine.scratch)
    kind = KINDS["attend"]
    other = tuple(replace(a, access="writes") if a.name == "partials" else a for a in kind.arguments)
    monkeypatch.setitem(KINDS, "attend", replace(kind, arguments=other))
    assert scheduled("quest", "sm_90a").functions["attend"].attrs["scratch"]["partials"] == "writes", "from the kind"

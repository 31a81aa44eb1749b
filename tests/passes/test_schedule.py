"""``schedule`` chooses every knob of every kernel for every target; unknown knobs and illegal numbers are errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import pytest

from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.ir.core import Attr, Function, Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import PassContext, run_pipeline
from vortex.schedules.check import WORDS, check_program, check_schedule, described, without
from vortex.schedules.knobs import Legal, declared, read_knobs
from vortex.schedules.template import declarations, listing, schedulable
from vortex.spec import Spec
from vortex.targets.target import TARGETS

FLOWS = [("quest", Spec()), ("block_topk", Spec(group=40)), ("latent_topk", Spec.of_latent("512+64", 20, page_size=32))]
GOOD = {"lanes": 8, "from": "user", "serves": ((8, 64, 32),)}


def planned(flow: str = "quest", spec: Spec | None = None, **given: Mapping[str, Attr]) -> Module:
    """Page IR that was not scheduled; ``given`` are schedules that somebody wrote into it, by kernel."""
    passes = "expand-softmax,fuse,cse,dce,plan-memory"
    made = compile_flow(flow, spec=spec or Spec(), passes=f"outline,{passes}", to="page").programs["cpu"]
    for name, schedule in given.items():
        made.functions[name].attrs["schedule"] = dict(schedule)
    return made


def scheduled(program: Module, target: str, options: str = "") -> Module:
    return run_pipeline(
        program, f"schedule{{knobs={options}}}" if options else "schedule", PassContext(TARGETS[target])
    )


def kernel(schedule: Attr) -> Function:
    return Function("kernel", "select", [], [], {"kind": "select", "schedule": schedule})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("flow", "spec"), FLOWS)
def test_every_knob_of_every_kernel_is_written(flow: str, spec: Spec, target: str) -> None:
    program = scheduled(planned(flow, spec), target)
    origin = {"cpu": "heuristic", "sm_90a": "heuristic", "sm_100a": "model"}[target]
    for f in program.functions.values():
        mine = schedulable(program, f, TARGETS[target])
        if mine is None:
            assert (target, f.name) == ("cpu", "plan")
            continue
        schedule = f.attrs["schedule"]
        assert list(without(schedule, WORDS)) == [x.name for x in fields(mine.knobs)]
        assert schedule["from"] == origin
        assert "user" not in schedule
        knobs = read_knobs(mine.knobs, schedule)
        assert mine.refuse(program, f, TARGETS[target], knobs) is None
    again = parse_module(print_module(program))
    check_program(again, TARGETS[target])
    assert print_module(scheduled(again, target)) == print_module(program)


def test_facts_follow_from_the_knobs() -> None:
    """Not in the IR, where an edit would make them lies."""
    program = scheduled(planned(), "sm_90a")
    f = program.functions["attend"]
    assert "bytes_in_flight" not in f.attrs["schedule"]
    before = described(program, f, TARGETS["sm_90a"])
    f.attrs["schedule"]["stages"] = 2 * f.attrs["schedule"]["stages"] - 1
    after = described(program, f, TARGETS["sm_90a"])
    assert after["bytes_in_flight"] == 2 * before["bytes_in_flight"]
    assert after["bytes_per_page"] == before["bytes_per_page"] == 2 * 16 * 128 * 2


# what somebody gives ------------------------------------------------------------------------------


def test_defaults_are_chosen_around_what_is_given() -> None:
    free = scheduled(planned(), "sm_90a").functions["attend"].attrs["schedule"]
    made = scheduled(planned(attend={"tile": 64}), "sm_90a").functions["attend"].attrs["schedule"]
    assert made["tile"] == 64 != free["tile"]
    assert made["user"] == ("tile",)
    assert made["from"] == "heuristic"
    # rings of tiles that are four times as large do not fit as often
    assert made["stages"] * made["warps"] < free["stages"] * free["warps"]


def test_a_whole_schedule_stays_as_it_is() -> None:
    program = scheduled(planned(), "sm_90a")
    program.functions["attend"].attrs["schedule"] |= {"stages": 2, "from": "mine"}
    assert print_module(scheduled(program, "sm_90a")) == print_module(program)


def test_options_are_for_a_kind_or_for_all_that_have_the_knob() -> None:
    made = scheduled(planned(), "sm_90a", "attend.warps:2+threads:64").functions
    assert made["attend"].attrs["schedule"]["warps"] == 2
    assert {made[k].attrs["schedule"]["threads"] for k in ("plan", "append", "select")} == {64}
    assert made["select"].attrs["schedule"]["user"] == ("threads",)
    every = scheduled(planned(), "cpu", "select.lanes:4+select.unroll:2+select.prefetch:0").functions
    assert every["select"].attrs["schedule"] == {"lanes": 4, "unroll": 2, "prefetch": 0, "from": "user"}


@pytest.mark.parametrize(
    ("options", "target", "code", "says"),
    [
        ("attend.warp:2", "sm_90a", "VX3002", "did you mean 'warps'"),
        ("lanes:2", "sm_90a", "VX3002", "no kernel on sm_90a has a knob 'lanes'"),
        ("attend.prefetch:2", "cpu", "VX3002", "no attend on cpu has a knob 'prefetch'"),
        ("lanes", "cpu", "VX3002", "'lanes' gives no number"),
        ("lanes:x", "cpu", "VX3002", "gives no number"),
        ("lanes:5", "cpu", "VX2010", "lanes is 5; it may be 1, 2, 4, 8, 16, 32 or 64"),
        ("select.threads:4096", "sm_90a", "VX2010", "threads is 4096; it may be a multiple of 32 from 32 to 1024"),
        ("attend.residents:32", "sm_90a", "VX4006", "an SM holds 8 CTAs of 1 warps and 25600 bytes, not 32"),
        ("attend.tile:1024", "sm_90a", "VX4006", "tiles of 1024 tokens are more than 32 pages of 16"),
        ("attend.tile:512+attend.warps:16", "sm_100a", "VX4006", "a CTA may have 232448"),
    ],
)
def test_options_that_are_wrong(options: str, target: str, code: str, says: str) -> None:
    with pytest.raises(VortexError, match=code) as caught:
        scheduled(planned(), target, options)
    assert says in caught.value.render()


# what people edit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel_name", "edit", "code", "says"),
    [
        ("attend", {"resident": 1}, "VX2010", "there is no knob 'resident', did you mean 'residents'"),
        ("select", {"threads": 100}, "VX2010", "threads is 100; it may be a multiple of 32 from 32 to 1024"),
        ("select", {"threads": 4096}, "VX2010", "threads is 4096"),
        ("append", {"threads": True}, "VX2010", "threads is True"),
        ("append", {"threads": 128.0}, "VX2010", "threads is 128.0"),
        ("append", {"threads": "128"}, "VX2010", "threads is '128'"),
        ("attend", {"overlap": 2}, "VX2010", "overlap is 2; it may be 0 or 1"),
        ("attend", {"stages": 16, "warps": 16}, "VX4006", "bytes of shared memory"),
        ("attend", {"tile": 48, "page": 3}, "VX2010", "no knob 'page'"),
        ("select", {"residents": 9}, "VX4006", "9 CTAs of 256 are 2304"),
        ("plan", {"lanes": 16}, "VX2010", "no knob 'lanes'"),
        ("append", {"bytes_per_page": 1}, "VX2010", "no knob 'bytes_per_page'"),
        ("append", {"variant_of": "append"}, "VX2010", "no knob 'variant_of'"),
        ("append", {"user": ("warps",)}, "VX2005", "a list of knobs that it says"),
        ("select", {"table": ({"serves": ((1, 1, 1),)},)}, "VX2005", "looks nothing up"),
        ("plan", {"table": ({"serves": ((1, 1, 1),), "threads": 64},)}, "VX2005", "1024 as in the schedule"),
        ("select", {"variants": ({"serves": ((1, 1, 1),), "threads": 33},)}, "VX2010", "variants[0]: threads is 33"),
        ("select", {"variants": ({"serves": ((1, 1, 1),), "residents": 9},)}, "VX4006", "2304"),
    ],
)
def test_an_edit_that_is_wrong(kernel_name: str, edit: dict[str, Attr], code: str, says: str) -> None:
    program = scheduled(planned(), "sm_90a")
    f = program.functions[kernel_name]
    f.attrs["schedule"] = {**f.attrs["schedule"], **edit}
    with pytest.raises(VortexError, match=code) as caught:
        check_program(program, TARGETS["sm_90a"])
    assert says in caught.value.render()


def test_a_knob_that_is_missing() -> None:
    program = scheduled(planned(), "sm_90a")
    del program.functions["attend"].attrs["schedule"]["stages"]
    with pytest.raises(VortexError, match="VX2010") as caught:
        check_program(program, TARGETS["sm_90a"])
    assert "does not say stages" in caught.value.render()
    check_program(scheduled(program, "sm_90a"), TARGETS["sm_90a"])


@pytest.mark.parametrize("schedule", [{}, GOOD, {**GOOD, "variants": (GOOD, GOOD)}])
def test_good_schedules(schedule: Attr) -> None:
    assert check_schedule(kernel(schedule), schedulable(planned(), kernel(schedule), TARGETS["cpu"])) == schedule
    assert check_schedule(Function("kernel", "plan", [], [], {"kind": "plan"}), None) == {}


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (3, "numbers by name"),
        ({"lanes": "x"}, "lanes is 'x'; it may be"),
        ({"lanes": (1, 2)}, "lanes"),
        ({"from": 3}, "from is 3; a string"),
        ({"user": "lanes"}, "user"),
        ({"serves": 4}, "serves"),
        ({"serves": ((1, 2),)}, "serves"),
        ({"serves": ((1, 2, -3),)}, "serves"),
        ({"serves": ((1, 2, 1 << 40),)}, "serves"),
        ({"variants": 3}, "variants is 3; a list"),
        ({"variants": (3,)}, "variants[0]"),
        ({"variants": ({"lanes": 8},)}, "variants[0] is {'lanes': 8}; 'serves'"),
        ({"variants": ({**GOOD, "lanes": "x"},)}, "variants[0]: lanes"),
        ({"variants": ({**GOOD, "variants": ()},)}, "variants[0]"),
        ({"variants": (GOOD,) * 65}, "at most 64"),
        ({"table": (GOOD,)}, "table"),
        ({"variant_of": "attend"}, "variant_of"),
    ],
)
def test_bad_schedules(schedule: Attr, says: str) -> None:
    with pytest.raises(VortexError, match=r"VX2005|VX2010") as caught:
        check_schedule(kernel(schedule), schedulable(planned(), kernel(schedule), TARGETS["cpu"]))
    assert says in caught.value.render()


# declarations -------------------------------------------------------------------------------------


def test_points_of_spaces_are_legal_and_can_be_launched() -> None:
    for flow, spec in FLOWS:
        program = planned(flow, spec)
        for target in TARGETS.values():
            for f in program.functions.values():
                if (mine := schedulable(program, f, target)) is not None:
                    for knobs in mine.space(program, f, target):
                        assert read_knobs(mine.knobs, knobs.attrs()) == knobs
                        assert mine.refuse(program, f, target, knobs) is None


def test_every_knob_is_documented() -> None:
    rows = listing()
    assert len(rows) == sum(len(declared(s.knobs)) for s in declarations())
    assert all(all(row.values()) for row in rows)


def test_legal_numbers_say_what_they_are() -> None:
    assert str(Legal(32, 1024, 32)) == "a multiple of 32 from 32 to 1024"
    assert str(Legal(1)) == "a whole number from 1 on"
    assert str(Legal(only=(0, 1))) == "0 or 1"

"""The structural hash sees meaning only; the schedule hash sees choices only."""

from __future__ import annotations

from hypothesis import given, settings

from tests.ir.samples import QUEST, every_page_op
from tests.strategies import flows
from vortex.errors import Loc
from vortex.ir.core import Module
from vortex.ir.digest import schedule, structural, structural_of
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.rewrite import copy_module


def rename(m: Module) -> Module:
    """Other names, locations and notes."""
    m = copy_module(m)
    m.name = "other"
    for f in m.functions.values():
        f.loc = Loc("elsewhere.py", 7)
        for i, v in enumerate(f.values()):
            v.name = f"v{i}"
        for o in f.ops:
            o.loc = Loc("elsewhere.py", 3)
            o.notes = {"slot": 1}
    return m


@given(flows())
@settings(max_examples=50, deadline=None)
def test_names_do_not_enter(text: str) -> None:
    m = parse_module(text)
    assert structural(m) == structural(rename(m)) == structural(parse_module(text))
    assert print_module(m) == text


def test_meaning_enters() -> None:
    m = parse_module(QUEST)
    for a, b in (("flow.maximum", "flow.minimum"), ("page_size = 16", "page_size = 32"), ("@lo", "@low")):
        text = QUEST.replace(a, b).replace('"lo"', '"low"') if a == "@lo" else QUEST.replace(a, b)
        assert structural(parse_module(text)) != structural(m), a


def test_schedules_have_their_own_hash() -> None:
    m, other = every_page_op(), every_page_op()
    other.functions["attend"].attrs["schedule"] = {"lanes": 16, "from": "user"}
    assert structural(m) == structural(other)
    assert schedule(m) != schedule(other)
    other = every_page_op()
    other.attrs["target"] = "cpu"
    assert structural(m) == structural(other)
    assert schedule(m) != schedule(other)
    assert structural_of(m.functions["plan"]) != structural_of(m.functions["append"])

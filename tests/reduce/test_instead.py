"""What stands instead of a value that goes: each strategy has a case that no other one serves."""

from __future__ import annotations

import pytest

from vortex.ir.core import Function, Value
from vortex.ir.dialects import flow
from vortex.ir.types import S, TensorType, bf16, f32
from vortex.reduce import instead
from vortex.reduce.remake import Body

WIDE, PAGES, LANES = TensorType(f32, (S, 4)), TensorType(f32, (S,)), TensorType(f32, (4,))


@pytest.fixture
def body() -> Body:
    """Three numbers of each page, and one tile of each page."""
    return Body(Function("func", "index", [Value("a", PAGES), Value("b", PAGES), Value("c", PAGES), Value("w", WIDE)]))


def test_an_operand_of_the_type_is_taken_before_other_values(body: Body) -> None:
    a, b, c, w = body.values
    assert instead.first_operand(PAGES, (w, b, c), body) is b
    assert instead.last_operand(PAGES, (b, c, w), body) is c
    assert instead.first_operand(PAGES, (w,), body) is c, "the latest value of the type"
    assert instead.first_operand(LANES, (w, a), body) is w, "an operand of another type, where it broadcasts"
    assert instead.first_operand(LANES, (), body) is None


def test_the_first_value_of_the_type_skips_what_lies_between(body: Body) -> None:
    assert instead.first_value(PAGES, (body.values[2],), body) is body.values[0]
    assert instead.first_value(LANES, tuple(body.values), body) is None


def test_axes_too_many_are_folded(body: Body) -> None:
    found = instead.folded_value(PAGES, (), Body(Function("func", "index", [body.values[3]])))
    assert found is not None and found.type == PAGES
    assert isinstance(found.owner, flow.ReduceMax) and found.owner.axes == (1,)
    assert instead.folded_value(TensorType(bf16, (7,)), (), body) is None


def test_numbers_stand_where_no_value_fits(body: Body) -> None:
    one = instead.number(LANES, body.values[:1], body)
    assert one is not None and one.type == TensorType(f32)
    assert instead.number(LANES, (), body) is None, "without operands there may be nobody to broadcast it"
    ones = instead.numbers(LANES, (), body)
    assert ones is not None and ones.type == LANES
    assert instead.numbers(PAGES, (), body) is None, "how many pages there are is not known"
    names = [v.name for v in body.function.values()]
    assert len(set(names)) == len(names)

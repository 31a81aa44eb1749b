"""What the verifier refuses of IR made by hand."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.ir.samples import QUEST, every_page_op
from vortex.driver import compile_flow
from vortex.errors import Loc, VortexError
from vortex.ir.core import Decl, Function, Module, Value
from vortex.ir.dialects import flow, page
from vortex.ir.parser import parse_module
from vortex.ir.types import S, TensorType, bf16, f32
from vortex.ir.verify import verify


def quest() -> Module:
    return parse_module(QUEST)


def drop_definition(m: Module) -> None:
    del m.functions["index"].ops[1]


def use_before_definition(m: Module) -> None:
    ops = m.functions["index"].ops
    ops[0], ops[1] = ops[1], ops[0]


def same_name(m: Module) -> None:
    m.functions["index"].ops[1].value.name = "q"


def other_type(m: Module) -> None:
    m.functions["index"].ops[1].value.type = TensorType(f32, (S, 4, 9))


def no_return(m: Module) -> None:
    m.functions["index"].ops.pop()


def two_returns(m: Module) -> None:
    ops = m.functions["index"].ops
    ops.append(flow.Return(ops[-1].operands))


def missing_field(m: Module) -> None:
    end = m.functions["cache"].ops[-1]
    assert isinstance(end, flow.Return)
    end.values, end.names = end.values[:1], end.names[:1]


def field_shape(m: Module) -> None:
    m.decls["lo"].type = TensorType(bf16, (9,))


def unknown_resource(m: Module) -> None:
    m.functions["index"].ops.insert(0, flow.Resource("table", TensorType(f32, (2,))))


def page_op(m: Module) -> None:
    m.functions["index"].ops.insert(0, page.Plan("plan", 16))


def kernel_in_flow(m: Module) -> None:
    m.functions["index"].keyword = "kernel"


FLOWS = [
    (drop_definition, "VX2003"), (use_before_definition, "VX2003"), (same_name, "VX2004"), (other_type, "VX2006"),
    (no_return, "VX2008"), (two_returns, "VX2008"), (missing_field, "VX2008"), (field_shape, "VX2008"),
    (unknown_resource, "VX2008"), (page_op, "VX2008"), (kernel_in_flow, "VX2008"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "code"), FLOWS, ids=[d.__name__ for d, _ in FLOWS])
def test_flow_modules(damage: Callable[[Module], None], code: str) -> None:
    m = quest()
    verify(m)
    damage(m)
    with pytest.raises(VortexError) as info:
        verify(m)
    assert info.value.code == code
    assert info.value.render()


def arguments(m: Module) -> None:
    m.functions["attend"].args.append(Value("x", TensorType(f32)))


def other_domain(m: Module) -> None:
    m.functions["attend"].attrs["domain"] = "rows"


def undeclared_buffer(m: Module) -> None:
    del m.decls["lse"]


def bad_layout(m: Module) -> None:
    m.decls["q"].attrs["layout"] = "striped"


def loaded_type(m: Module) -> None:
    m.decls["q"].type = TensorType(bf16, (4, 9))


def stored_shape(m: Module) -> None:
    m.decls["out"].type = TensorType(bf16, (4, 9))


def scatter_to_row(m: Module) -> None:
    m.decls["k"].attrs["layout"] = "batched"


def no_selection(m: Module) -> None:
    m.decls["pages"].type = TensorType(f32)


def returning_kernel(m: Module) -> None:
    m.functions["plan"].ops.append(flow.Return(()))


def resource_for_buffer(m: Module) -> None:
    m.decls["plan"] = Decl("resource", "plan", TensorType(f32))


def pool_by_row(m: Module) -> None:
    m.decls["k"].attrs["role"] = "workspace"


def pages_of_another_size(m: Module) -> None:
    m.attrs["page_size"] = 7


def log_sums_elsewhere(m: Module) -> None:
    m.decls["lse"].type = TensorType(bf16, (4,))


PROGRAMS = [
    pool_by_row, pages_of_another_size, log_sums_elsewhere,
    arguments, other_domain, undeclared_buffer, bad_layout, loaded_type, stored_shape, scatter_to_row, no_selection,
    returning_kernel, resource_for_buffer,
]  # fmt: skip


@pytest.mark.parametrize("damage", PROGRAMS, ids=[d.__name__ for d in PROGRAMS])
def test_page_programs(damage: Callable[[Module], None]) -> None:
    m = every_page_op()
    verify(m)
    damage(m)
    with pytest.raises(VortexError) as info:
        verify(m)
    assert info.value.code == "VX2008"


def test_the_place_in_the_flow_is_shown() -> None:
    m = quest()
    m.functions["cache"].ops[0].value.type = TensorType(f32, (9,))
    with pytest.raises(VortexError) as info:
        verify(m)
    assert info.value.loc == Loc("quest.py", 9, 19, 32)


def test_selections_are_no_tensors() -> None:
    f = Function("func", "f", [Value("s", TensorType(f32, (S,)))])
    p = f.add(flow.TopK(f.args[0]))
    with pytest.raises(VortexError, match="a tensor is needed"):
        flow.Neg(p)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("page_words", 0, "has 0 words of a page"),
        ("keys", 5, "the keys end beyond them"),
        ("keys", "x", "keys of kernel @select is 'x'"),
        ("row_words", 3, "has 3 words of a row (row_words); 16 are needed"),
        ("row_words", 16.5, "row_words of kernel @select is 16.5"),
        ("page_words", -1, "page_words of kernel @select is -1"),
        ("page_words", True, "page_words of kernel @select is True"),
    ],
)
def test_words_of_the_workspace(name: str, value: object, why: str) -> None:
    m = compile_flow("quest", to="page").programs["cpu"]
    m.functions["select"].attrs[name] = value
    with pytest.raises(VortexError, match=re.escape(why)) as info:
        verify(m)
    assert info.value.code == "VX2008"


@pytest.mark.parametrize("slot", [-1, 10**6, "x"])
def test_slots_lie_within_the_workspace(slot: object) -> None:
    m = compile_flow("mass", to="page").programs["cpu"]
    kept = next(o for o in m.functions["select"].ops if "slot" in o.notes)
    verify(m)
    kept.notes["slot"] = slot
    with pytest.raises(VortexError, match=r"words of a page \(page_words\), and %"):
        verify(m)

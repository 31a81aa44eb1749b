"""Each torch function, traced and interpreted, means what it means in torch."""

from __future__ import annotations

import pytest
import torch

from tests.flow.evaluate import run
from tests.flow.op_cases import CASES, Case, tensors, types
from vortex.flow.arithmetic import Fp32Arithmetic
from vortex.flow.optable import listing
from vortex.flow.trace import trace_function
from vortex.ir.digest import structural
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.types import S, TensorType, f32


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_traced_equals_eager(case: Case) -> None:
    module = trace_function(case.fn, types(case))
    text = print_module(module)
    again = parse_module(text)
    assert print_module(again) == text
    assert structural(again) == structural(module)
    for pages in (0, 1, 2, 33):
        args = tensors(case, pages)
        try:
            with Fp32Arithmetic():
                want = case.fn(*args.values())
        except (RuntimeError, IndexError):
            assert pages == 0, "torch refuses only what has no pages"
            continue
        (got,) = run(again, args, pages)
        if pages < case.least:
            continue
        assert tuple(got.shape) == tuple(want.shape)
        assert (got.dtype.kind == "f") == want.dtype.is_floating_point
        got = torch.as_tensor(got.copy() if got.ndim else got)
        close = {"rtol": case.tolerance, "atol": case.tolerance, "equal_nan": True}
        torch.testing.assert_close(got.double(), want.double(), **close)


@pytest.mark.parametrize(("power", "ops"), [(2, ["mul"]), (3, ["mul", "mul"]), (0.5, ["sqrt"]), (-0.5, ["rsqrt"])])
def test_the_operator_of_powers_is_products_and_roots(power: float, ops: list[str]) -> None:
    module = trace_function(lambda x: x**power, {"x": TensorType(f32, (S,))})
    made = [o.name for o in module.functions["index"].ops if o.role not in ("leaf", "end")]
    assert [n for n in made if n != "flow.return"][-len(ops) :] == [f"flow.{n}" for n in ops]
    assert "flow.pow" not in made


def test_ops_are_named_and_listed() -> None:
    rows = listing()
    assert len({r["name"].rpartition(".")[2] for r in rows}) >= 120
    assert all(r["doc"] and r["lowers_to"] for r in rows)


def test_every_listed_op_has_a_case() -> None:
    """Nothing is offered that no case runs: the handlers used by the cases are all handlers there are."""
    from vortex.flow import optable

    rows = {e.handler for e in optable._TABLE.values()}
    used = set()
    keep = optable.call
    try:
        optable.call = lambda entry, args, kwargs: (used.add(entry.handler), keep(entry, args, kwargs))[1]
        for case in CASES:
            trace_function(case.fn, types(case))
    finally:
        optable.call = keep
    assert not sorted(h.__doc__ or h.__name__ for h in rows - used)

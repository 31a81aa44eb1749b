"""The flow interpreter: order of scores, types, resources."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from tests.ir.samples import QUEST, every_flow_op, flow_op
from vortex.errors import VortexError
from vortex.ir.core import OPS, Decl, Function, Module, Value
from vortex.ir.dialects import flow
from vortex.ir.interpret import held_as, run_function
from vortex.ir.parser import parse_module
from vortex.ir.ranking import Ranked, ranking
from vortex.ir.types import S, TensorType, bool_, f32, i32


def test_order_of_scores() -> None:
    score = np.array([np.nan, 0.0, -np.inf, -0.0, np.inf, np.nan, 1.0, -1.0], np.float32)
    assert ranking(score).tolist() == [4, 6, 1, 3, 7, 2, 0, 5]
    assert Ranked(score).best(3).tolist() == [1, 4, 6]
    assert Ranked(score).best(100).tolist() == list(range(8))
    assert ranking(np.array([2, 2**24 + 1, 2**24, 2], np.int32)).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("pages", [0, 1, 2, 33])
def test_quest_is_its_formula(pages: int) -> None:
    rng = np.random.default_rng(pages)
    q, lo, hi = (rng.normal(size=s).astype(np.float32) for s in ((4, 8), (pages, 8), (pages, 8)))
    m = parse_module(QUEST)
    (got,) = run_function(m.functions["index"], [q, lo, hi], m)
    want = np.maximum(q * lo[:, None], q * hi[:, None]).sum(-1).max(-1, initial=-np.inf)
    np.testing.assert_allclose(got.score, want, rtol=1e-6)


@pytest.mark.parametrize("pages", [0, 1, 2, 33])
@pytest.mark.parametrize("dtype", [f32, i32, bool_], ids=str)
def test_every_op_gives_its_type(pages: int, dtype: object) -> None:
    """Elementwise ops and reductions on every pair of element types; run_function checks each result."""
    rng = np.random.default_rng(0)
    types = [f32, i32, bool_]
    f = Function("func", "f", [Value(f"x{t}", TensorType(t, (S, 8))) for t in types])
    m = Module("flow", "m", {}, {}, {"f": f})
    mine = next(a for a in f.args if isinstance(a.type, TensorType) and a.type.dtype == dtype)
    for kind in OPS.values():
        for other in f.args:
            values = {"c": mine, "d": other, "b": f.args[2], "i": f.args[1]}
            if issubclass(kind, flow.Unary | flow.Binary | flow.Reduce):
                f.append(flow_op(kind, values))
    for other in f.args:
        f.append(flow.Where(f.args[2], mine, other))
        f.append(flow.Concat((mine, other), 1))
    f.append(flow.Scan(mine, 0))
    f.append(flow.Return(()))
    args = [rng.integers(-3, 4, (pages, 8)).astype(held_as(t)) for t in types]
    run_function(f, args, m)


def test_every_op_runs() -> None:
    m = every_flow_op()
    f = m.functions["index"]
    rng = np.random.default_rng(0)
    for pages in (0, 2, 6):
        args = []
        for a in f.args:
            assert isinstance(a.type, TensorType)
            shape = [d if isinstance(d, int) else d.pages(pages) for d in a.type.shape]
            args.append(rng.integers(-2, 3, shape).astype(held_as(a.type.dtype)))
        run_function(f, args, m, layer=3, head=1, parameters={"weight": rng.random((4, 2, 2, 2), np.float32)})


def test_integers_and_floats_meet_in_fp32() -> None:
    f = Function("func", "f", [Value("a", TensorType(i32, (1,))), Value("b", TensorType(f32, (1,)))])
    for kind in (flow.Add, flow.Mul, flow.Maximum, flow.Lt):
        f.append(kind(*f.args))
    f.append(flow.Return(tuple(o.value for o in f.ops)))
    a, b = np.array([2**24 + 1], np.int32), np.array([2.0**24], np.float32)
    total, product, larger, less = run_function(f, [a, b], Module("flow", "m"))
    assert total.dtype == product.dtype == np.float32
    assert float(larger[0]) == 2.0**24
    assert not less[0]


def test_conv_is_torchs() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(6, 2, 3)).astype(np.float32)
    f = Function("func", "f", [Value("x", TensorType(f32, (S, 4))), Value("w", TensorType(f32, (6, 2, 3)))])
    f.append(flow.Return((f.add(flow.Conv(f.args[0], f.args[1], 2)),)))
    (got,) = run_function(f, [x, w], Module("flow", "m"))
    want = torch.conv1d(torch.from_numpy(x.T)[None], torch.from_numpy(w), padding=1, groups=2)[0].T.numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def leaves() -> tuple[Module, Function]:
    m = Module("flow", "m")
    m.declare(Decl("resource", "t", TensorType(f32, (2,))))
    f = m.define(Function("func", "f"))
    made = [flow.Resource("t", TensorType(f32, (2,))), flow.Layer(TensorType(i32)), flow.PageCount(TensorType(i32))]
    made.append(flow.PageIndex(TensorType(i32, (S,))))
    f.append(flow.Return(tuple(f.add(o) for o in made)))
    return m, f


def test_leaves() -> None:
    m, f = leaves()
    m.decls["t"].attrs["data"] = base64.b64encode(np.array([1.5, -2], "<f4").tobytes()).decode()
    table, layer, count, index = run_function(f, [], m, pages=3, layer=7, first=2)
    assert table.tolist() == [1.5, -2]
    assert (int(layer), int(count), index.tolist()) == (7, 3, [2, 3, 4])
    assert run_function(f, [], m, pages=2, page_index=[5, 9])[3].tolist() == [5, 9]


@pytest.mark.parametrize("data", ["", "AAAA", "not base64", "é"])
def test_bad_resources(data: str) -> None:
    m, f = leaves()
    m.decls["t"].attrs["data"] = data
    with pytest.raises(VortexError, match="VX2008"):
        run_function(f, [], m)


def test_bad_arguments() -> None:
    m = parse_module(QUEST)
    f = m.functions["index"]
    q, c = np.zeros((4, 8)), np.zeros((3, 8))
    for args in ([q], [q, c, np.zeros((2, 8))], [q, c, np.zeros(8)], [np.zeros((4, 9)), c, c]):
        with pytest.raises(VortexError, match="VX2008"):
            run_function(f, args, m)

"""One instance of every op, and modules that together hold all of them."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np

from vortex.ir.core import OPS, Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.types import S, Sym, TensorType, bf16, bool_, f32, i32, selection, uint1
from vortex.kinds.kind import KINDS

ARGS = {
    "q": TensorType(bf16, (4, 8)),
    "c": TensorType(bf16, (S, 8)),
    "d": TensorType(f32, (S, 8)),
    "s": TensorType(f32, (S,)),
    "b": TensorType(bool_, (S, 8)),
    "w": TensorType(f32, (2, 8, 3)),
    "i": TensorType(i32, (1, 3)),
    "halves": TensorType(i32, (Sym("S", 0, 2),)),
}


def flow_op(kind: type[Op], v: dict[str, Value]) -> Op:
    """An instance of a flow op on values named as in :data:`ARGS`."""
    if issubclass(kind, flow.Not):
        return kind(v["b"])
    if issubclass(kind, flow.Unary):
        return kind(v["c"])
    if issubclass(kind, flow.Logical | flow.FloorDivide):
        return kind(v["b"], v["b"])
    if issubclass(kind, flow.DifferingBits):
        return kind(v["i"], v["i"])
    if issubclass(kind, flow.Binary):
        return kind(v["c"], v["d"])
    if issubclass(kind, flow.Reduce):
        return kind(v["c"], (0, 1), True)
    return SPECIAL[kind](v)


SPECIAL: dict[type[Op], Callable[[dict[str, Value]], Op]] = {
    flow.Cast: lambda v: flow.Cast(v["c"], f32),
    flow.Where: lambda v: flow.Where(v["b"], v["c"], v["d"]),
    flow.Softmax: lambda v: flow.Softmax(v["c"], 0),
    flow.SoftmaxSum: lambda v: flow.SoftmaxSum(v["c"]),
    flow.Scan: lambda v: flow.Scan(v["c"], 0, "max"),
    flow.ArgSort: lambda v: flow.ArgSort(v["c"], 1, True),
    flow.Gather: lambda v: flow.Gather(v["c"], v["i"], 1),
    flow.Shift: lambda v: flow.Shift(v["c"], -2, "fill", 1.5),
    flow.PackBits: lambda v: flow.PackBits(v["b"]),
    flow.Conv: lambda v: flow.Conv(v["c"], v["w"]),
    flow.Dot: lambda v: flow.Dot(v["q"], v["c"], "gd,sd->sg"),
    flow.Reshape: lambda v: flow.Reshape(v["c"], (S, 2, 4)),
    flow.Transpose: lambda v: flow.Transpose(v["c"], (1, 0)),
    flow.Broadcast: lambda v: flow.Broadcast(v["c"], (3, S, 8)),
    flow.Slice: lambda v: flow.Slice(v["c"], 1, 7, 3, -2),
    flow.Param: lambda v: flow.Param("weight", "head", TensorType(f32, (2, 2))),
    flow.RowBudget: lambda v: flow.RowBudget(TensorType(i32)),
    flow.Head: lambda v: flow.Head(TensorType(i32)),
    flow.Concat: lambda v: flow.Concat((v["c"], v["d"]), 1),
    flow.Constant: lambda v: flow.Constant(float("-inf"), TensorType(f32)),
    flow.Resource: lambda v: flow.Resource("table", TensorType(f32, (2,))),
    flow.Layer: lambda v: flow.Layer(TensorType(i32)),
    flow.PageIndex: lambda v: flow.PageIndex(TensorType(i32, (S,))),
    flow.PageCount: lambda v: flow.PageCount(TensorType(i32)),
    flow.Shortlist: lambda v: flow.Shortlist(v["s"], TensorType(i32, (Sym("S1", 3),))),
    flow.Pick: lambda v: flow.Pick(v["c"], v["flow.shortlist"]),
    flow.BlocksOf: lambda v: flow.BlocksOf(v["halves"]),
    flow.TopK: lambda v: flow.TopK(v["s"], 3),
    flow.TopP: lambda v: flow.TopP(v["s"], 0.9),
    flow.Union: lambda v: flow.Union((v["flow.topk"], v["flow.topp"])),
}


def every_flow_op() -> Module:
    """A flow module whose @index holds each flow op once."""
    data = base64.b64encode(np.array([1, 2], "<f4").tobytes()).decode()
    m = Module("flow", "every", {"page_size": 16, "ratio": 0.5, "tags": ("a", True, S, f32), "more": {"x": -1}})
    m.declare(Decl("resource", "table", TensorType(f32, (2,)), {"data": data}))
    m.declare(Decl("param", "weight", TensorType(f32, (2, 2)), {"per": "head"}))
    f = m.define(Function("func", "index", [Value(n, t) for n, t in ARGS.items()]))
    values = {a.name: a for a in f.args}
    for name, kind in OPS.items():
        if name.startswith("flow.") and kind is not flow.Return:
            made = flow_op(kind, values)
            f.append(made)
            if isinstance(made, flow.Part | flow.Shortlist):
                values[name] = made.value
    f.append(flow.Return((values["s"],)))
    return m


def every_page_op() -> Module:
    """A page program that holds each page op."""
    m = Module("page", "every", {"page_size": 16})

    def buffer(name: str, type: TensorType, layout: str, role: str) -> None:
        m.declare(Decl("buffer", name, type, {"layout": layout, "role": role}))

    tile, new = TensorType(bf16, (16, 8)), TensorType(bf16, (8,))
    buffer("q", TensorType(bf16, (4, 8)), "batched", "input")
    for name in ("k", "v"):
        buffer(name, tile, "paged", "pool")
        buffer(f"{name}_new", new, "token", "input")
    buffer("plan", TensorType(i32, (4,)), "request", "plan")
    buffer("out", TensorType(bf16, (4, 8)), "batched", "output")
    buffer("lse", TensorType(f32, (4,)), "batched", "output")
    m.declare(Decl("buffer", "pages", selection, {"layout": "batched", "role": "output"}))

    def kernel(kind: str) -> Function:
        attrs = {"kind": kind, "domain": KINDS[kind].domain, "schedule": {"lanes": 8, "from": "model"}}
        return m.define(Function("kernel", kind, attrs=attrs))

    kernel("plan").append(page.Plan("plan", 16, 2, 8, True))
    append = kernel("append")
    append.append(page.Scatter("k_new", "k"))
    append.add(page.LoadPage("k", tile), "rows")
    m.declare(Decl("buffer", "ema", TensorType(f32, (1,)), {"layout": "entry", "role": "state", "init": 0.0}))
    append.append(page.Reset("ema"))
    buffer("bits", TensorType(uint1, (2, 64)), "paged", "field")
    buffer("words", TensorType(i32, (2, 2)), "ragged", "workspace")
    f = kernel("select")
    f.append(page.Store(f.add(page.LoadWords("bits", TensorType(i32, (S, 2, 2))), "w"), "words"))
    f = kernel("attend")
    q = f.add(page.Load("q", TensorType(bf16, (4, 8))), "q")
    p = f.add(page.LoadSelection("pages"), "p")
    o = f.add(page.Attend(q, p, "k", "v", "lse", TensorType(f32, (4, 8))), "o")
    f.append(page.Store(o, "out"))
    f.ops[-1].notes = {"slot": 3}
    return m


QUEST = """\
// vortex-ir 1 | stage flow
flow.module @quest {page_size = 16, head_dim = 8, group = 4, dtype = "bf16"} {
  field @lo : bf16[8]
  field @hi : bf16[8]

  func @cache(%k: bf16[16, 8], %v: bf16[16, 8]) {
    %lo = flow.reduce_min(%k) {axes = [0]} : f32[8]  @ "quest.py":9:19-32
    %hi = flow.reduce_max(%k) {axes = [0]} : f32[8]  @ "quest.py":9:40-53
    flow.return(%lo, %hi) {names = ["lo", "hi"]}
  }

  func @index(%q: bf16[4, 8], %lo: bf16[S, 8], %hi: bf16[S, 8]) {
    %lo_1 = flow.reshape(%lo) {shape = [S, 1, 8]} : f32[S, 1, 8]
    %a = flow.mul(%q, %lo_1) : f32[S, 4, 8]
    %hi_1 = flow.reshape(%hi) {shape = [S, 1, 8]} : f32[S, 1, 8]
    %b = flow.mul(%q, %hi_1) : f32[S, 4, 8]
    %m = flow.maximum(%a, %b) : f32[S, 4, 8]
    %bound = flow.reduce_sum(%m) {axes = [2]} : f32[S, 4]
    %score = flow.reduce_max(%bound) {axes = [1]} : f32[S]
    %p = flow.topk(%score) : selection
    flow.return(%p)
  }
}
""".replace("} : f32[S, 1, 8]", "} : bf16[S, 1, 8]")


def head(index: str, fields: dict[str, str]) -> str:
    """A flow module text around the body of @index; fields are means of the page's keys."""
    declared = "".join(f"field @{n} : {t}[8]\n" for n, t in fields.items())
    made = "".join(f"%{n} = flow.reduce_mean(%k) {{axes = [0]}} : f32[8]\n" for n in fields)
    args = ", ".join(f"%{n}: {t}[S, 8]" for n, t in fields.items())
    names = ", ".join(f'"{n}"' for n in fields)
    values = ", ".join(f"%{n}" for n in fields)
    return (
        'flow.module @sample {page_size = 16, head_dim = 8, group = 4, dtype = "bf16"} {\n'
        f"{declared}func @cache(%k: bf16[16, 8], %v: bf16[16, 8]) {{\n{made}"
        f"flow.return({values}) {{names = [{names}]}}\n}}\n"
        f"func @index(%q: bf16[4, 8], {args}) {{\n{index}}}\n}}\n"
    )


GQA_BLOCK = head(
    """%d = flow.dot(%q, %c) {spec = "gd,sd->sg"} : f32[S, 4]
    %f = flow.constant() {number = 0.09} : f32[]
    %x = flow.mul(%d, %f) : f32[S, 4]
    %p = flow.softmax(%x) {axis = 0} : f32[S, 4]
    %s = flow.reduce_max(%p) {axes = [1]} : f32[S]
    %best = flow.topk(%s) : selection
    flow.return(%best)
    """,
    {"c": "bf16"},
)

CENTERED = head(
    """%d = flow.dot(%q, %c) {spec = "gd,sd->sg"} : f32[S, 4]
    %s = flow.reduce_mean(%d) {axes = [1]} : f32[S]
    %m = flow.reduce_mean(%s) {axes = [0]} : f32[]
    %x = flow.sub(%s, %m) : f32[S]
    %best = flow.topk(%x) : selection
    flow.return(%best)
    """,
    {"c": "bf16"},
)

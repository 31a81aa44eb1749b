"""``vortex reduce``: what is left is small, still what was looked for, and nothing of it can go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex, vortex
from tests.ir.samples import every_flow_op, every_page_op
from vortex.cli.main import USER_ERROR
from vortex.errors import VortexError
from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.rewrite import behind
from vortex.ir.types import S, TensorType, bf16
from vortex.passes import manager
from vortex.passes.manager import Pass, PassContext, register
from vortex.reduce.reducer import KINDS, Reducer, op_count

__all__ = ["vortex"]


def large() -> Module:
    """A flow of 200 ops and three fields; one op is an erf, of what has been through exp and a dot."""
    m = Module("flow", "large", {"page_size": 16, "head_dim": 64, "group": 4, "dtype": "bf16"})
    rows = TensorType(bf16, (16, 64))
    cache = Function("func", "cache", [Value("k", rows), Value("v", rows)])
    index = Function("func", "index", [Value("q", TensorType(bf16, (4, 64)))])
    kinds: list[type[flow.Reduce]] = [flow.ReduceMax, flow.ReduceMin, flow.ReduceMean]
    written = []
    for i, kind in enumerate(kinds):
        m.declare(Decl("field", f"c{i}", TensorType(bf16, (64,))))
        written.append(cache.add(kind(cache.args[0], (0,)), f"c{i}"))
        index.args.append(Value(f"c{i}", TensorType(bf16, (S, 64))))
    cache.append(flow.Return(tuple(written), tuple(m.decls)))
    unary: list[type[flow.Unary]] = [flow.Exp, flow.Tanh, flow.Neg, flow.Abs, flow.Sqrt]
    binary: list[type[flow.Binary]] = [flow.Add, flow.Mul, flow.Maximum, flow.Sub]
    x = [index.add(flow.Dot(index.args[0], c, "gd,sd->sg")) for c in index.args[1:]]
    for i in range(189):
        made: Op = binary[i // 2 % 4](x[-1], x[-1 - i % 3]) if i % 2 else unary[i // 2 % 5](x[-1])
        x.append(index.add(flow.Erf(x[-1]) if i == 90 else made))
    score = index.add(flow.Softmax(index.add(flow.ReduceSum(x[-1], (1,))), 0))
    index.append(flow.Return((index.add(flow.TopK(score)),)))
    m.define(cache)
    m.define(index)
    return m


def erf_of_exp(m: Module) -> bool:
    """Whether pages are chosen by an erf of something exponential: what :class:`Fragile` cannot take."""
    ends = [o for f in m.functions.values() for o in f.ops if isinstance(o, flow.TopK)]
    chosen_by = [v.owner for o in ends for v in behind(o.scored) if isinstance(v.owner, flow.Erf)]
    return any(isinstance(v.owner, flow.Exp) for erf in chosen_by for v in behind(erf.x))


@pytest.fixture
def fragile() -> Iterator[None]:
    """A pass with a mistake in it."""

    @register("fragile", stage="flow", tag="exact", version=1)
    @dataclass(frozen=True, slots=True)
    class Fragile(Pass):
        """Fails on some flows."""

        def run(self, module: Module, ctx: PassContext) -> Module:
            assert not erf_of_exp(module)
            return module

    yield
    manager.PASSES.pop("fragile")


def shortened(text: str) -> Iterator[str]:
    """The text without one of its lines, the first and empty ones aside."""
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    yield from ("".join(lines[:i] + lines[i + 1 :]) for i in range(1, len(lines)))


def fails(text: str) -> bool:
    """Whether a text is IR on which the pass fails."""
    try:
        return erf_of_exp(parse_module(text))
    except VortexError:
        return False


@pytest.mark.usefixtures("fragile")
def test_200_ops_to_the_few_that_break_a_pass(vortex: Vortex) -> None:
    text = print_module(large())
    assert op_count(parse_module(text)) == 200
    Path("large.flow").write_text(text)
    start = time.process_time()
    command = ("reduce", "large.flow", "--test", "vortex opt {} --passes=fragile", "--error", "AssertionError")
    found = vortex(*command, "-o", "small.flow")
    assert time.process_time() - start < 20
    assert (found.code, found.out) == (0, "")
    assert "200 ops to 5 in" in found.err
    small = Path("small.flow").read_text()
    m = parse_module(small)
    # exp, erf, what makes it one number a page, topk, return
    assert op_count(m) <= 5
    assert erf_of_exp(m)
    assert not any(fails(x) for x in shortened(small))
    assert list(m.functions) == ["index"]
    assert not m.decls
    assert not m.attrs
    assert all(n == 1 for v in m.functions["index"].values() if isinstance(v.type, TensorType) for n in v.type.tile)
    # the same again, and nothing more of it
    assert vortex(*command).out == small
    assert vortex("reduce", "small.flow", *command[2:]).out == small
    assert Path("large.flow").read_text() == text
    assert sorted(p.name for p in Path().iterdir()) == ["large.flow", "small.flow"]


def test_a_shell_command_is_the_test(vortex: Vortex) -> None:
    Path("large.flow").write_text(print_module(large()))
    found = vortex("reduce", "large.flow", "--test", "grep -q flow.reduce_mean")
    assert found.code == 0
    m = parse_module(found.out)
    assert [o.name for f in m.functions.values() for o in f.ops] == ["flow.reduce_mean", "flow.return"]
    # every candidate that the command sees is a module
    check = "grep -c . {} > /dev/null && cat {} >> all.txt && echo '=====' >> all.txt && grep -q 'flow.*exp' {}"
    found = vortex("reduce", "large.flow", "--test", check)
    seen = Path("all.txt").read_text().split("=====\n")[:-1]
    assert len(seen) == int(found.err.split(" candidates tested")[0].split()[-1]) + 1
    assert all(parse_module(text) for text in seen)


def test_a_flow_is_traced_and_page_ir_reduced(vortex: Vortex) -> None:
    small = vortex("reduce", "quest", "--head-dim", "64", "--test", "grep -q flow.topk")
    assert small.code == 0
    left = [o.name for f in parse_module(small.out).functions.values() for o in f.ops]
    assert left == ["flow.reduce_max", "flow.topk", "flow.return"]
    vortex("compile", "quest", "--to", "page", "-o", "quest.page", "--no-dump")
    small = vortex("reduce", "quest.page", "--test", "grep -q page.attend")
    m = parse_module(small.out)
    assert m.stage == "page"
    assert [f.attrs["kind"] for f in m.functions.values()] == ["attend"]
    assert op_count(m) == 3  # two leaves and attend


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--test", "echo no such luck; false"), "--test: exits with 1 on large.flow itself"),
        (("--test", "echo no such luck; false"), "no such luck"),
        (
            ("--test", "vortex opt", "--error", "VX3001"),
            "--error: on large.flow itself the command ends without an error",
        ),
        (("--test", "vortex opt --passes=x", "--error", "VX4006"), "the command ends in VX3001"),
        (("--test", "vortex opt", "--error", "VX9999"), "error[VX7003]: no error named 'VX9999'"),
        (("--test", "vortex opt", "--error", "no class"), "'no class' is no code and no class"),
        (("--test", "./check.sh", "--error", "VX4006"), "is not a command of vortex"),
        (("--test", "vortex 'opt", "--error", "VX4006"), "cannot be split into words"),
        (("--test", "true", "--time-limit", "0"), "--time-limit: is 0"),
        (("--test", "sleep 60; true", "--time-limit", "0.2"), "one run on large.flow itself takes longer than that"),
        (("--test", "true", "--head-dim", "64"), "--head-dim: is fixed by the IR"),
    ],
)
def test_mistakes(vortex: Vortex, args: tuple[str, ...], message: str) -> None:
    Path("large.flow").write_text(print_module(large()))
    found = vortex("reduce", "large.flow", *args)
    assert (found.code, found.out) == (USER_ERROR, "")
    assert message in found.err


def test_time_limit_gives_the_smallest_so_far(vortex: Vortex) -> None:
    Path("large.flow").write_text(print_module(large()))
    # asked for the eleventh time it hangs
    hang = 'echo x >> asked; test "$(grep -c x asked)" -le 10 || sleep 60; grep -q erf {}'
    start = time.monotonic()
    found = vortex("reduce", "large.flow", "--test", hang, "--time-limit", "4")
    assert time.monotonic() - start < 20
    assert found.code == 0
    assert "time is up: 200 ops to" in found.err
    assert 5 < op_count(parse_module(found.out)) < 200


@pytest.mark.parametrize("module", [every_flow_op(), every_page_op()], ids=["flow", "page"])
def test_every_candidate_is_a_module_or_refused(module: Module) -> None:
    """Of modules that hold every op: what is tested parses to itself, whatever kind of thing is left out."""
    seen = 0

    def test(text: str, seconds: float | None) -> bool:
        nonlocal seen
        seen += 1
        assert print_module(parse_module(text)) == text
        return seen % 5 == 0

    kinds: set[str] = set()
    before = print_module(module)
    Reducer(module, test, on_smaller=kinds.add).reduce()
    assert print_module(module) == before
    assert seen > 40
    assert kinds <= {k.name for k in KINDS}
    assert len(kinds) >= 4

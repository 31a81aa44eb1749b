"""What two modules differ in: nothing under renaming and reordering, and after one change that change alone."""

from __future__ import annotations

import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.ir.samples import QUEST, every_page_op
from tests.strategies import BINARY, COMPARE, REDUCE, UNARY, flows
from vortex.errors import Loc
from vortex.ir.compare import compare_modules
from vortex.ir.core import Function, Module, Op
from vortex.ir.dialects import flow
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.rewrite import copy_module


def shuffle(f: Function, chance: random.Random) -> None:
    """Another order of the ops in which each still comes after those it uses."""
    last, waiting, ready = f.ops[-1], f.ops[:-1], set(f.args)
    order: list[Op] = []
    while waiting:
        o = chance.choice([o for o in waiting if ready.issuperset(o.operands)])
        waiting.remove(o)
        order.append(o)
        ready.add(o.value)
    f.ops = [*order, last]


def disguise(m: Module, seed: int) -> Module:
    """The same module under other names and locations, in another order."""
    m = copy_module(m)
    for f in m.functions.values():
        shuffle(f, random.Random(seed))
        f.loc = Loc("elsewhere.py", 7)
        for i, v in enumerate(f.values()):
            v.name = f"v{i}"
        for o in f.ops:
            o.loc = Loc("elsewhere.py", 3)
    return parse_module(print_module(m))


@given(flows(steps=10), st.integers(0, 1 << 16))
@settings(max_examples=25, deadline=None)
def test_names_and_order_make_no_difference(text: str, seed: int) -> None:
    m = parse_module(text)
    other = disguise(m, seed)
    assert not compare_modules(m, other)
    assert not compare_modules(other, m)
    assert print_module(m) == text, "names are put back"


def mutated(o: Op) -> Op | None:
    """Another op of the same operands and type."""
    for kinds in (UNARY, BINARY, COMPARE, REDUCE):
        if type(o) in kinds:
            other = next(k for k in kinds if k is not type(o))
            fields = {name: getattr(o, name) for name in (*o.form.operands, *(f.name for f in o.form.attrs))}
            return other(**fields)
    return flow.Constant(o.number + 7, o.type) if isinstance(o, flow.Constant) else None


@given(flows(steps=10), st.integers(0, 1 << 16))
@settings(max_examples=25, deadline=None)
def test_one_changed_op_is_the_only_difference(text: str, seed: int) -> None:
    m = parse_module(text)
    other = parse_module(text)
    f = other.functions["index"]
    at = random.Random(seed).randrange(len(f.ops))
    before = f.ops[at]
    after = mutated(before)
    assume(after is not None and after.value.type == before.value.type)
    assert after is not None
    after.value.name = before.value.name
    _put(f, at, after)
    [function] = compare_modules(m, disguise(other, seed)).functions
    [change] = function.changes
    # of ops that compute the same any may stand for the one that was changed, so names are not looked at
    kinds = [text.partition(" = ")[2].split("(")[0] for text in (change.before, change.after)]
    assert (function.name, change.sign, kinds) == ("index", "~", [before.name, after.name])


def _put(f: Function, at: int, new: Op) -> None:
    """Let ``new`` stand for the op at ``at``."""
    old = f.ops[at]
    made = {old.value: new.value}
    f.ops[at] = new
    for i in range(at + 1, len(f.ops)):
        o = f.ops[i].with_operands([made.get(v, v) for v in f.ops[i].operands])
        if o.result is not None:
            made[f.ops[i].value] = o.result
        f.ops[i] = o


def changes(a: Module, b: Module) -> list[tuple[str, ...]]:
    found = compare_modules(a, b)
    every = [("module", c) for c in found.changes] + [(f.name, c) for f in found.functions for c in f.changes]
    return [(where, c.sign, c.what, c.name, c.before, c.after, c.origin) for where, c in every]


def test_knobs_attributes_and_declarations_one_by_one() -> None:
    a, b = every_page_op(), every_page_op()
    a.functions["attend"].attrs["schedule"] = {"warps": 4, "tile": 16, "from": "heuristic"}
    b.functions["attend"].attrs["schedule"] = {
        "warps": 8, "tile": 16, "from": "db:79c2", "variants": ({"warps": 2, "from": "db:1111"},),
    }  # fmt: skip
    b.attrs["page_size"] = 99
    b.attrs["source"] = "another text"
    found = changes(a, b)
    size = str(a.attrs["page_size"])
    assert ("module", "~", "attribute", "page_size", size, "99", "") in found
    assert ("attend", "~", "knob", "warps", "4", "8", "heuristic -> db:79c2") in found
    assert ("attend", "+", "knob", "variant 1", "", "warps=2", "db:1111") in found
    assert len(found) == 3
    del b.decls[next(iter(b.decls))]
    assert changes(a, b)[1][:3] == ("module", "-", "buffer")
    assert str(compare_modules(a, b)) == "1 kernel differs: attend (2 knobs); 1 attribute, 1 buffer"


def test_an_op_that_was_added_and_one_that_was_replaced() -> None:
    text = QUEST
    a = parse_module(text)
    b = copy_module(a)
    f = b.functions["index"]
    top = next(o for o in f.ops if isinstance(o, flow.TopK))
    at = f.ops.index(top)
    added = flow.Exp(top.operands[0])
    added.value.name = next(v.name for v in f.values() if v is not top.operands[0])
    f.ops[at:] = [added, flow.TopK(added.value), flow.Return((top.value,))]
    f.ops[-1] = flow.Return((f.ops[at + 1].value,))
    [function] = compare_modules(a, b).functions
    signs = [(c.sign, c.after.partition(" = ")[2].split("(")[0]) for c in function.changes]
    assert signs == [("+", "flow.exp"), ("~", "flow.topk")]
    assert function.changes[0].name.endswith("'"), "the first module has the name for another value"


PROGRAM = """\
page.program @p {page_size = 16} {
  buffer @x : f32[4] {layout = "batched", role = "input"}
  buffer @a : f32[4] {layout = "batched", role = "workspace"}
  buffer @b : f32[4] {layout = "batched", role = "workspace"}

  kernel @select_a() {kind = "select", domain = "rows"} {
    %x = page.load() {buffer = "x"} : f32[4]
    page.store(%x) {buffer = "a"}
    %a = page.load() {buffer = "a"} : f32[4]
    page.store(%a) {buffer = "b"}
  }
}
"""


def program(*ops: str, name: str = "a") -> Module:
    """The same with other ops."""
    head, _, _ = PROGRAM.partition("    %x =")
    text = head.replace("@a ", f"@{name} ").replace("@select_a", f"@select_{name}")
    return parse_module("\n".join([text.rstrip(), *(f"    {o}" for o in ops), "  }", "}", ""]))


LOAD_X, STORE_A = '%x = page.load() {buffer = "x"} : f32[4]', 'page.store(%x) {buffer = "a"}'
LOAD_A, STORE_B = '%a = page.load() {buffer = "a"} : f32[4]', 'page.store(%a) {buffer = "b"}'


def test_order_of_reads_and_writes_of_one_buffer_is_a_difference() -> None:
    one = program(LOAD_X, STORE_A, LOAD_A, STORE_B)
    assert not compare_modules(one, program(LOAD_X, STORE_A, LOAD_A, STORE_B))
    assert compare_modules(one, program(LOAD_A, LOAD_X, STORE_A, STORE_B)), "what it reads is another number"
    loads = program(LOAD_X, '%b = page.load() {buffer = "b"} : f32[4]', STORE_A)
    assert not compare_modules(loads, program('%b = page.load() {buffer = "b"} : f32[4]', LOAD_X, STORE_A))


def test_workspace_and_kernels_named_after_values_are_found_again() -> None:
    renamed = (LOAD_X, STORE_A.replace('"a"', '"top"'), LOAD_A.replace('"a"', '"top"'), STORE_B)
    assert not compare_modules(program(LOAD_X, STORE_A, LOAD_A, STORE_B), program(*renamed, name="top"))

"""Printing and parsing: the text is the IR."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings

from tests.ir.samples import CENTERED, GQA_BLOCK, QUEST, every_flow_op, every_page_op
from tests.strategies import flows
from vortex.errors import VortexError
from vortex.ir.core import OPS, Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import WIDTH, print_module
from vortex.ir.verify import verify
from vortex.passes.manager import PassContext, run_pipeline


def page_text(text: str) -> str:
    return print_module(run_pipeline(parse_module(text), "outline", PassContext()))


SAMPLES = [print_module(every_flow_op()), print_module(every_page_op()), print_module(parse_module(QUEST))]


def test_every_op_survives_printing_and_parsing() -> None:
    seen = set()
    for m in (every_flow_op(), every_page_op()):
        verify(m)
        text = print_module(m)
        again = parse_module(text)
        assert print_module(again) == text
        seen |= {o.name for f in again.functions.values() for o in f.ops}
    assert seen == set(OPS)


@pytest.mark.parametrize("text", [QUEST, GQA_BLOCK, CENTERED])
def test_samples_are_fixpoints(text: str) -> None:
    once = print_module(parse_module(text))
    assert print_module(parse_module(once)) == once
    page = page_text(text)
    assert print_module(parse_module(page)) == page


def test_locations_and_notes_can_be_left_out() -> None:
    m = parse_module(QUEST)
    assert '"quest.py":9:19-32' in print_module(m)
    assert "quest.py" not in print_module(m, locs=False)
    m = every_page_op()
    assert "<slot = 3>" in print_module(m)
    assert parse_module(print_module(m)).functions["attend"].ops[-1].notes == {"slot": 3}
    assert "slot" not in print_module(m, notes=False)


@given(flows())
@settings(max_examples=100, deadline=None)
def test_random_flows_survive(text: str) -> None:
    assert print_module(parse_module(text)) == text


HEAD = "flow.module @m { func @f(%x: f32[S, 4]) {\n"
ERRORS = [
    ("", "VX2001", "'flow.module' or 'page.program'"),
    ("flow.module @m {", "VX2001", "a declaration, a function or '}'"),
    ("flow.module {}", "VX2001", "a name such as '@quest'"),
    ("flow.module @m {} x", "VX2001", "the end of the text"),
    ("flow.module @m { ; }", "VX2001", "found ';'"),
    ("// vortex-ir 7\nflow.module @m {}", "VX2009", "this is a version 7 file; version 1 is needed"),
    (HEAD + "%y = flow.foo(%x) : f32[S, 4] }}", "VX2002", "no operation 'flow.foo'"),
    (HEAD + "%y = flow.abss(%x) : f32[S, 4] }}", "VX2002", "did you mean 'flow.abs'"),
    (HEAD + "%y = flow.abs(%xx) : f32[S, 4] }}", "VX2003", "did you mean 'x'"),
    (HEAD + "%x = flow.abs(%x) : f32[S, 4] }}", "VX2004", "'x' is defined twice"),
    (HEAD + "flow.return(%x)} func @f() {flow.return()}}", "VX2004", "'f' is defined twice"),
    (HEAD + "%y = flow.abs(%x) {axis = 1} : f32[S, 4] }}", "VX2005", "no attribute 'axis'"),
    (HEAD + "%y = flow.softmax(%x) {axs = 1} : f32[S, 4] }}", "VX2005", "did you mean 'axis'"),
    (HEAD + "%y = flow.softmax(%x) : f32[S, 4] }}", "VX2005", "'axis' is missing"),
    (HEAD + "%y = flow.softmax(%x) {axis = 1.5} : f32[S, 4] }}", "VX2005", "'axis' must be int"),
    (HEAD + "%y = flow.softmax(%x) {axis = true} : f32[S, 4] }}", "VX2005", "'axis' must be int"),
    (HEAD + "%y = flow.softmax(%x) {axis = 2} : f32[S, 4] }}", "VX2007", "axis 2 of f32[S, 4]"),
    (HEAD + "%y = flow.reshape(%x) {shape = [S, true, 4]} : f32[S, 1, 4] }}", "VX2005", "'shape' must be"),
    (HEAD + "%y = flow.reshape(%x) {shape = [S, -2, -2]} : f32[S, 4] }}", "VX2007", "negative size"),
    (HEAD + "%y = flow.add(%x) : f32[S, 4] }}", "VX2005", "1 operands, 2 are needed"),
    (HEAD + "%y = flow.abs(%x) : f32[S, 5] }}", "VX2006", "computes f32[S, 4], but the text says f32[S, 5]"),
    (HEAD + "%y = flow.abs(%x) }}", "VX2006", "says nothing"),
    (HEAD + "%y = flow.abs(%x) : f33[S, 4] }}", "VX2001", "did you mean 'f32'"),
    (HEAD + "flow.abs(%x) : f32[S, 4] }}", "VX2001", "expected a result"),
    (HEAD + "%y = flow.return(%x) : f32[S, 4] }}", "VX2001", "no result from flow.return"),
    (HEAD + '%y = flow.abs(%x) : f32[S, 4] @ "a\\q":1:1 }}', "VX2001", "a bad escape"),
    (HEAD + "%y = flow.transpose(%x) {perm = [0, 0]} : f32[S, 4] }}", "VX2007", "[0, 0] is not an order"),
    (HEAD + '%y = flow.dot(%x, %x) {spec = "é,b->"} : f32[] }}', "VX2007", "not a contraction"),
    (HEAD + "%y = flow.constant() {number = inf} : i32[] }}", "VX2007", "inf is not a number of type i32"),
    (HEAD + "%y = flow.constant() {number = nan} : bool[] }}", "VX2007", "nan is not a number of type bool"),
    (HEAD + "%y = flow.constant() {number = 1} }}", "VX2005", "'type' must be"),
    (HEAD + "flow.return(%x) {names = [1]} }}", "VX2005", "'names' must be"),
    (HEAD + "}}", "VX2008", "does not end in flow.return"),
    ("flow.module @m {a = 99999999999999999999} {}", "VX2001", "18 digits"),
    ("flow.module @m {a = 1, a = 2} {}", "VX2004", "attribute 'a'"),
    (f"flow.module @m {{a = {'[' * 40}}} {{}}", "VX2001", "at most 16 nested"),
    (f"flow.module @m {{ field @a : f32[{', '.join(['1'] * 40)}] }}", "VX2001", "at most 16 axes"),
    ("flow.module @m { field @a : f32[-1] }", "VX2001", "not negative"),
    ("flow.module @m { kernel @a() { flow.return() } }", "VX2008", "holds functions"),
    ("page.program @m { kernel @a() { } }", "VX2008", "not a kernel of a known kind"),
    ("page.program @m { kernel @a() {kind = {b = 1}} { } }", "VX2008", "not a kernel of a known kind"),
    ("page.program @m { buffer @a : f32[] }", "VX2008", "needs a layout"),
    ('page.program @m { buffer @a : f32[S] {layout = "paged", role = "pool"} }', "VX2008", "one tile"),
]


@pytest.mark.parametrize(("text", "code", "part"), ERRORS, ids=[f"{i}-{e[1]}" for i, e in enumerate(ERRORS)])
def test_bad_text(text: str, code: str, part: str) -> None:
    with pytest.raises(VortexError) as info:
        parse_module(text, "bad.flow")
    assert info.value.code == code
    rendered = info.value.render()
    assert part in rendered
    assert info.value.loc is not None
    assert info.value.loc.file == "bad.flow"


def test_an_error_points_at_the_place() -> None:
    with pytest.raises(VortexError) as info:
        parse_module(QUEST.replace("flow.maximum(%a, %b)", "flow.maximum(%a, %bb)"), "q.flow")
    assert info.value.render().splitlines()[1:4] == [
        "  --> q.flow:17:27",
        "   |",
        "17 |     %m = flow.maximum(%a, %bb) : f32[S, 4, 8]",
    ]


@pytest.mark.parametrize("text", SAMPLES)
def test_every_truncation_is_an_error(text: str) -> None:
    for end in range(len(text) - 2):
        with pytest.raises(VortexError):
            parse_module(text[:end])


FRAGMENTS = [
    "%", "@", "{", "}", "[", "]", "(", ")", "<", ">", ",", ":", "=", "->", '"', "\\", "\n", " ", "-", "-1", "0",
    "1e999", "999999999999999999", "1.5", "nan", "inf", "-inf", "S", "true", "selection", "f32", "i64[2]", "flow.dot",
    "page.load",
    "flow.topk", "kernel", "func", "\x00", "é", "//", "%q", "axes = [0]", "shape = [S, 0]", "{a = {b = [1, {}]}}",
]  # fmt: skip


def mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 3)):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + rng.choice([0, 1, 2, 8, 40]))
        piece = rng.choice([rng.choice(FRAGMENTS), text[b : b + rng.randint(0, 30)], chr(rng.randrange(32, 127)), ""])
        text = text[:a] + piece + text[b:]
    return text


def parsed(text: str) -> Module | VortexError:
    try:
        return parse_module(text)
    except VortexError as e:
        return e


def survives(count: int, seed: int) -> int:
    rng = random.Random(seed)
    valid = 0
    for _ in range(count):
        text = mutated(rng.choice(SAMPLES), rng)
        outcome = parsed(text)
        if isinstance(outcome, VortexError):
            assert outcome.render().startswith("error[VX")
        else:
            valid += 1
            assert print_module(parse_module(print_module(outcome))) == print_module(outcome)
    return valid


def test_mutated_files_are_errors_or_valid() -> None:
    survives(2000, seed=1)


@pytest.mark.full
def test_many_mutated_files_are_errors_or_valid() -> None:
    assert survives(10_000, seed=2) > 100


def test_long_heads_are_wrapped_and_read_back() -> None:
    text = (
        'page.program @wide {page_size = 4, name = "a, b {c", more = [1, 2], source = "' + "0123456789" * 8 + '"} {\n'
        '  kernel @plan() {kind = "plan", domain = "requests", schedule = {'
        + ", ".join(f"knob_{i} = [{i}, {i}]" for i in range(20))
        + ", table = [{serves = [[1, 2, 3], [4, 5, 6]]}, {serves = [[7, 8, 9]]}]}} {\n  }\n}\n"
    )
    module = parse_module(text)
    printed = print_module(module)
    assert all(len(line) <= WIDTH for line in printed.splitlines()) and max(map(len, text.splitlines())) > 3 * WIDTH
    assert printed.count("\n") > 6 and '"a, b {c"' in printed and "[[1, 2, 3], [4, 5, 6]]" in printed
    assert "".join(printed.split()) == "".join(f"// vortex-ir 1 | stage page\n{text}".split())
    assert print_module(parse_module(printed)) == printed

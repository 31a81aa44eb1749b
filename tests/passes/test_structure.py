"""Before and after as whole programs, where names do not matter."""

from __future__ import annotations

import pytest

from tests.ir.samples import CENTERED, GQA_BLOCK, QUEST, head
from vortex.errors import Loc
from vortex.ir.digest import structural
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline

SIMPLIFY = DEFAULT_PIPELINE["flow"].removesuffix(",outline")
CONTEXT = PassContext()

SUM_SCORE = head(
    """%m = flow.reduce_sum(%q) {axes = [0]} : f32[8]
    %s = flow.dot(%m, %c) {spec = "d,sd->s"} : f32[S]
    %best = flow.topk(%s) : selection
    flow.return(%best)
    """,
    {"c": "bf16"},
)
PRODUCTS = head(
    """%half = flow.constant() {number = 0.5} : f32[]
    %c_half = flow.mul(%c, %half) : f32[S, 8]
    %c1 = flow.reshape(%c_half) {shape = [S, 1, 8]} : f32[S, 1, 8]
    %y = flow.mul(%c1, %q) : f32[S, 4, 8]
    %d = flow.reduce_sum(%y) {axes = [2]} : f32[S, 4]
    %a = flow.reduce_sum(%d) {axes = [1], keepdims = true} : f32[S, 1]
    %four = flow.constant() {number = 4.0} : f32[]
    %s = flow.div(%a, %four) : f32[S, 1]
    %r = flow.reshape(%s) {shape = [S]} : f32[S]
    %w = flow.softmax(%r) {axis = 0} : f32[S]
    %best = flow.topk(%w) : selection
    flow.return(%best)
    """,
    {"c": "bf16"},
)


def test_centered_becomes_the_score_of_summed_heads() -> None:
    """Two passes of two kinds meet: nothing is left of the mean over pages, and one dot of four."""
    assert structural(run_pipeline(parse_module(CENTERED), SIMPLIFY, CONTEXT)) == structural(parse_module(SUM_SCORE))


def test_a_sum_of_scaled_products_becomes_one_dot_per_page() -> None:
    after = run_pipeline(parse_module(PRODUCTS), SIMPLIFY, CONTEXT).functions["index"]
    names = [o.name for o in after.ops if not o.name.startswith("flow.reshape")]
    assert names == ["flow.reduce_sum", "flow.dot", "flow.topk", "flow.return"]


def test_a_bound_over_a_box_becomes_two_dots() -> None:
    after = run_pipeline(parse_module(QUEST), SIMPLIFY, CONTEXT).functions["index"]
    names = [o.name.removeprefix("flow.") for o in after.ops if o.name not in ("flow.constant", "flow.reshape")]
    assert names == ["maximum", "minimum", "dot", "dot", "add", "reduce_max", "topk", "return"]


@pytest.mark.parametrize("text", [GQA_BLOCK, SUM_SCORE], ids=["gqa_block", "mean_score"])
def test_what_is_simple_stays(text: str) -> None:
    m = parse_module(text)
    assert print_module(run_pipeline(m, SIMPLIFY, CONTEXT)) == print_module(m)


def test_new_ops_come_from_somewhere() -> None:
    """Every op made for another has its place in the flow, and the last its name."""
    text = QUEST.replace("%bound = flow.reduce_sum(%m) {axes = [2]} : f32[S, 4]",
                         '%bound = flow.softmax(%m) {axis = 0} : f32[S, 4, 8] @ "quest.py":14:9-40')  # fmt: skip
    text = text.replace("flow.reduce_max(%bound) {axes = [1]}", "flow.reduce_max(%bound) {axes = [1, 2]}")
    f = run_pipeline(parse_module(text), "expand-softmax", CONTEXT).functions["index"]
    made = [o for o in f.ops if o.result is not None and o.result.name.startswith("bound")]
    assert [o.value.name for o in made] == ["bound_max", "bound_shifted", "bound_exp", "bound_sum", "bound"]
    assert {o.loc for o in made} == {Loc("quest.py", 14, 9, 40)}

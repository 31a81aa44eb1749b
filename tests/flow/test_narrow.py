"""Fields of codes and bits in flows: what they read as, what cannot be kept in them, and what the IR makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vortex
from tests.flow.test_errors import FLOW, Write, write  # noqa: F401
from tests.flow.test_flows import data, traced_scores
from tests.narrow_flows import FLOWS
from vortex.errors import VortexError
from vortex.flow import narrow, oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.spec import Spec

SPEC = Spec(page_size=16, head_dim=32, group=2)
MOST = {"int8": 127, "int4": 7}


@pytest.mark.parametrize("pages", [1, 2, 33])
@pytest.mark.parametrize("name", FLOWS)
def test_traced_flows_agree_with_themselves(name: str, pages: int) -> None:
    cls = FLOWS[name]
    torch.manual_seed(pages)
    q, k, v = data(SPEC, pages)
    kept = oracle.summaries(cls, SPEC, k, v)
    want = oracle.score(cls, SPEC, q, kept)
    np.testing.assert_allclose(traced_scores(cls, SPEC, q, k, v), want.numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_the_text_of_a_module_parses(name: str) -> None:
    text = print_module(trace(FLOWS[name], SPEC))
    assert print_module(parse_module(text)) == text


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize("scale", [0, 1, (), (-2,)])
def test_numbers_read_as_code_times_scale(dtype: str, scale: int | tuple[int, ...]) -> None:
    torch.manual_seed(0)
    f = vortex.Field(16, 32, dtype=dtype, scale=scale)
    x = torch.randn(16, 32) * torch.logspace(-3, 3, 16)[:, None]
    axes = {0: [1], 1: [0], (): [0, 1], (-2,): [1]}[scale]
    step = (x.abs().amax(axes, keepdim=True) / MOST[dtype]).half().float()
    parts = narrow.written("x", f, x)
    codes = narrow.codes(parts["x"], f.dtype)
    assert torch.equal(parts["x_scale"].float(), step)
    assert torch.equal(codes.float(), (x / step).clamp(-MOST[dtype], MOST[dtype]).round())
    read = narrow.read("x", f, {"x": codes.int(), "x_scale": parts["x_scale"].float()})
    # half a step, and what the largest loses where the step was rounded down
    assert bool(((read - x).abs() <= step * (0.5 + MOST[dtype] * 2.0**-10)).all())


@pytest.mark.parametrize("dtype", MOST)
def test_numbers_that_no_scale_is_for(dtype: str) -> None:
    f = vortex.Field(4, 4, dtype=dtype, scale=0)
    inf, nan, top = float("inf"), float("nan"), 65504.0 * MOST[dtype]
    x = torch.tensor([[0.0, 0.0, -0.0, 0.0], [1e-9, -1e-9, 0.0, 1e-10], [inf, -inf, 1.0, -1e9], [nan, 1.0, 2.0, inf]])
    parts = narrow.written("x", f, x)
    codes = narrow.codes(parts["x"], f.dtype)
    read = narrow.read("x", f, {"x": codes.int(), "x_scale": parts["x_scale"].float()})
    assert read[:2].abs().sum() == 0
    assert read[2].tolist() == [top, -top, 0.0, -top]
    assert read[3].isnan().all()


def broken(write: Write, create: str, cache: str, index: str = "return vortex.topk(score)") -> str:  # noqa: F811
    path = write(FLOW.format(name="broken", create=create, cache=cache, index=index))
    with pytest.raises(VortexError) as e:
        trace(find_flow(f"{path}:broken"), vortex.Spec(page_size=16, head_dim=8, group=4))
    assert e.value.loc is not None
    assert e.value.loc.line
    return e.value.render()


FIELD = 'return {{"a": vortex.Field({})}}'
MEAN = 'return {"a": page.k.mean(0)}'


@pytest.mark.parametrize(
    ("field", "cache", "says"),
    [
        ('7, dtype="int4", scale=()', MEAN, ["VX1016", "whose size is 7", "multiple of 2"]),
        ('12, dtype="uint1"', MEAN, ["VX1016", "8 elements a byte", "multiple of 8"]),
        ("8, scale=0", MEAN, ["VX1016", "codes have scales", 'dtype="int4"']),
        ('8, dtype="int4", scale=1', MEAN, ["VX1016", "does not name axes of [8]"]),
        ('8, dtype="int8", scale=0', MEAN, ["VX1016", "its own scale"]),
        ('8, dtype="int8", scale="x"', MEAN, ["VX1016", "does not name axes"]),
        ('8, dtype="int4"', MEAN, ["VX1050", "codes without a scale", "scale=()"]),
        ('8, dtype="int4"', 'return {"a": page.k.amax(0).int()}', ["VX1050", "from -7 to 7", "x.clamp(-7, 7)"]),
        ('8, dtype="int4"', 'return {"a": page.k.amax(0).int().clamp(-8, 7)}', ["VX1050", "between -8 and 7"]),
        ('8, dtype="int8"', 'return {"a": page.k.amax(0).int() % 200}', ["VX1050", "-127 to 127", "between 0 and 199"]),
        ('8, dtype="uint1"', MEAN, ["VX1050", "keeps bits", "x > 0"]),
    ],
)
def test_what_a_field_cannot_hold(write: Write, field: str, cache: str, says: list[str]) -> None:  # noqa: F811
    text = broken(write, FIELD.format(field), cache)
    for part in says:
        assert part in text, text


def test_the_name_of_the_scales_is_taken(write: Write) -> None:  # noqa: F811
    both = 'return {"a": vortex.Field(8, dtype="int4", scale=()), "a_scale": vortex.Field(8)}'
    text = broken(write, both, 'return {"a": page.k.mean(0), "a_scale": page.k.mean(0)}')
    assert "VX1016" in text
    assert "scales of 'a'" in text


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("vortex.same_bits(cache.a, q[0])", "needs two tensors of bools"),
        ("vortex.same_bits(cache.a > 0, q[0, :4] > 0)", "the last axes are [8] and [4]"),
        ("vortex.same_bits(score > 0, score > 0)", "which is not the page axis"),
    ],
)
def test_what_same_bits_refuses(write: Write, call: str, says: str) -> None:  # noqa: F811
    text = broken(write, FIELD.format("8"), MEAN, f"return vortex.topk({call}.float())")
    assert "VX1005" in text
    assert says in text


def test_same_bits_is_the_number_of_equal_ones() -> None:
    a, b = torch.rand(5, 1, 70) < 0.5, torch.rand(3, 70) < 0.5
    have = vortex.same_bits(a, b)
    assert have.dtype == torch.int32
    assert torch.equal(have, (a == b).sum(-1, dtype=torch.int32))
    with pytest.raises(VortexError, match="bools"):
        vortex.same_bits(a, b.float())

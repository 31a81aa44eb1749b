"""Flows as wholes: the library against its formulas and its oracle, names, constants, what a step selects."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vortex
from tests.flow.evaluate import run
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.arithmetic import Fp32Arithmetic
from vortex.flow.flow import find_flow, library_names
from vortex.flow.trace import trace, trace_function
from vortex.ir.dialects import flow
from vortex.ir.interpret import began
from vortex.ir.numerics import narrow
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.types import S, TensorType, bf16, dtype, f32

Tensor = torch.Tensor
SHAPES = [
    vortex.Spec(page_size=16, head_dim=16, group=4),
    vortex.Spec(page_size=32, head_dim=24, group=1, dtype="f32"),
    vortex.Spec(page_size=8, head_dim=12, group=3, dtype="f16"),
]
LATENT = ["latent_quest", "latent_slim", "latent_topk"]
"""Of MLA: test_latent.py has them."""
LEARNED = ["learned_query", "mlp_scorer"]
"""Of parameters: test_parameters.py has them."""
LIBRARY = [
    *("block_topk", "centered", "double_sparsity", "gqa_block", "lserve", "lserve_centroid"),
    *("hash_bits", "mass", "mass_lowrank", "masked_quest", "quest", "venergy_gated"),
]


def data(spec: vortex.Spec, pages: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    stored = oracle.TORCH[spec.dtype]
    q = torch.randn(spec.group, spec.head_dim, generator=made).to(stored)
    k, v = (torch.randn(pages, spec.page_size, spec.head_dim, generator=made).to(stored) for _ in "kv")
    return q, k, v


def traced_scores(cls: type[vortex.vFlow], spec: vortex.Spec, q: Tensor, k: Tensor, v: Tensor, layer: int = 0) -> Any:
    """Scores by the traced module: every page through @cache, rounded as stored, then @index."""
    module = parse_module(print_module(trace(cls, spec)))
    end = module.functions["cache"].ops[-1]
    assert isinstance(end, flow.Return)
    rows: dict[str, list[Any]] = {n: [] for n in end.names}
    for p in range(len(k)):
        for n, x in zip(end.names, run(module, {"k": k[p], "v": v[p]}, 0, "cache"), strict=True):
            rows[n].append(narrow(x, module.decls[n].type.dtype))
    fields = {n: torch.as_tensor(np.stack(x)) for n, x in rows.items()}
    fields |= {d.name: torch.as_tensor(began(d, len(k))) for d in module.declared("field") if "state" in d.attrs}
    return run(module, {"q": q, **fields}, len(k), layer=layer)[0]


def test_the_library_is_complete() -> None:
    assert library_names() == sorted(LIBRARY + LATENT + LEARNED)


@pytest.mark.parametrize("spec", SHAPES, ids=lambda s: f"{s.page_size}-{s.head_dim}-{s.dtype}")
@pytest.mark.parametrize("name", LIBRARY)
def test_library_flows_traced_equal_eager(name: str, spec: vortex.Spec) -> None:
    cls = find_flow(name)
    for pages in (1, 2, 33):
        q, k, v = data(spec, pages)
        want = oracle.score(cls, spec, q, oracle.summaries(cls, spec, k, v))
        got = traced_scores(cls, spec, q, k, v)
        np.testing.assert_allclose(got, want.numpy(), rtol=2e-4, atol=2e-4)


def _quest(q: Tensor, k: Tensor, v: Tensor, first: int = 0) -> Tensor:
    bound = torch.maximum(q[None] * k.amin(-2)[..., None, :], q[None] * k.amax(-2)[..., None, :])
    return bound[..., first:].sum(-1).amax(-1)


def _mass(q: Tensor, k: Tensor, most: int, dim: int) -> Tensor:
    """The estimated attention mass of pages, of keys in codes up to ``most``."""
    step = (k.abs().amax(-1, keepdim=True) / most).half().float()
    kept = (k / step).clamp(-most, most).round() * step
    return ((kept @ q.T) * dim**-0.5).logsumexp(1).softmax(0).sum(1)


def _mass_lowrank(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    basis = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)).sign() / 24**0.5
    return _mass(q @ basis, k @ basis, 127, 24)


def _hash_bits(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    signs = torch.where(torch.rand(24, 64, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    same = ((k @ signs > 0)[:, :, None] == (q @ signs > 0)).sum(-1)
    return same.amax(1).sum(-1).float()


FORMULAS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "block_topk": lambda q, k, v: k.mean(1) @ q.mean(0),
    "gqa_block": lambda q, k, v: torch.softmax(0.09 * (k.mean(1) @ q.T), 0).amax(1),
    "quest": _quest,
    "masked_quest": lambda q, k, v: _quest(q, k, v, first=8),
    "lserve": lambda q, k, v: _quest(q, k[:, :16], v).maximum(_quest(q, k[:, 16:], v)),
    "lserve_centroid": lambda q, k, v: (k.unflatten(1, (2, 16)).mean(2) @ q.mean(0)).amax(1),
    "centered": lambda q, k, v: (k.mean(1) @ q.T).mean(1) - (k.mean(1) @ q.T).mean(),
    "double_sparsity": lambda q, k, v: (k[..., :24] @ q.mT[:24]).amax((1, 2)),
    "mass": lambda q, k, v: _mass(q, k, 7, 24),
    "mass_lowrank": _mass_lowrank,
    "hash_bits": _hash_bits,
    "venergy_gated": lambda q, k, v: (k.mean(1) @ q.mean(0)) * v.square().sum(-1).sqrt().mean(1),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_library_flows_compute_their_formulas(name: str) -> None:
    spec = vortex.Spec(page_size=32, head_dim=24, group=4, dtype="f32")
    q, k, v = data(spec, 9)
    got = oracle.score(find_flow(name), spec, q, oracle.summaries(find_flow(name), spec, k, v))
    torch.testing.assert_close(got, FORMULAS[name](q, k, v), rtol=1e-5, atol=1e-5)


# the trace ---------------------------------------------------------------------------------------


class Named(vortex.vFlow):
    """Uses every source of names."""

    weights = torch.arange(8.0)

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(8), "both": vortex.Field(2, 8, dtype="fp8_e4m3"), "one": vortex.Field()}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        smallest = page.k.amin(0)
        return {"one": page.v.sum(), "lo": smallest, "both": torch.stack([smallest, page.k.amax(0)])}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        left, right = cache.both.unbind(1)
        scaled = left * self.weights + right * self.weights.clone()
        late = torch.where(vortex.layer() > 2, scaled, -scaled)
        score = (late @ q.mean(0)) + cache.one - vortex.page_index() / vortex.page_count()
        return vortex.topk(score + cache["lo"].sum(-1))


def test_values_are_named_after_the_flow() -> None:
    module = trace(Named, vortex.Spec(page_size=4, head_dim=8, group=2))
    assert module.name == "Named"
    cache, index = module.functions["cache"], module.functions["index"]
    end = cache.ops[-1]
    assert isinstance(end, flow.Return)
    assert end.names == ("lo", "both", "one")  # in declared order
    assert [v.name for v in end.values] == ["smallest", "both", "one"]
    assert [a.name for a in index.args] == ["q", "lo", "both", "one"]
    names = {v.name for v in index.values()}
    assert {"left", "right", "scaled", "late", "score", "layer", "page_index", "page_count", "weights"} <= names
    assert str(module.decls["both"].type) == "fp8_e4m3[2, 8]"
    assert module.attrs["page_size"] == 4
    assert len(module.attrs["source"]) == 64


def test_ops_know_their_line_and_columns() -> None:
    module = trace(Named, vortex.Spec(page_size=4, head_dim=8, group=2))
    o = next(v.owner for v in module.functions["index"].values() if v.name == "left")
    assert o is not None
    assert o.loc is not None
    text = Path(o.loc.file).read_text().splitlines()[o.loc.line - 1]
    assert text[o.loc.col - 1 : o.loc.end - 1] == "cache.both.unbind(1)"


def test_equal_constants_are_kept_once() -> None:
    module = trace(Named, vortex.Spec(page_size=4, head_dim=8, group=2))
    (kept,) = module.declared("resource")
    assert kept.name == "weights"
    assert str(kept.type) == "f32[8]"


def test_a_traced_flow_equals_its_eager_self() -> None:
    spec = vortex.Spec(page_size=4, head_dim=8, group=2)
    q, k, v = data(spec, 7)
    for layer in (0, 5):
        want = oracle.score(Named, spec, q, oracle.summaries(Named, spec, k, v), layer=layer)
        np.testing.assert_allclose(traced_scores(Named, spec, q, k, v, layer), want.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float64])
def test_captured_tensors_keep_their_values(kind: torch.dtype) -> None:
    held = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]]).to(kind)
    module = trace_function(lambda x: x + held, {"x": TensorType(f32, (S, 1, 1))})
    again = parse_module(print_module(module))
    (got,) = run(again, {"x": torch.ones(2, 1, 1)}, 2)
    np.testing.assert_array_equal(got, (1 + held.float()).expand(2, 2, 3).numpy())


def test_numpy_and_modules_are_captured() -> None:
    scale, layer = np.float32(3), torch.nn.Linear(8, 4)
    table = np.arange(8, dtype=np.float32)
    x = torch.randn(5, 8)

    def f(x: Any) -> Any:
        return layer(x * table) * scale + scale * np.float64(0.5)

    module = trace_function(f, {"x": TensorType(bf16, (S, 8))})
    (got,) = run(module, {"x": x}, 5)
    want = (layer(x * torch.as_tensor(table)) * 3 + 1.5).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_shapes_carry_the_page_symbol() -> None:
    def f(x: Any, y: Any) -> Any:
        assert x.shape == y.shape
        assert x.shape[0] == y.shape[0]
        assert x.shape[1:] == (4, 8)
        assert (x.ndim, x.dim(), x.size(-1), len(x.shape), x[0 : x.shape[0]].ndim) == (3, 3, 8, 3, 3)
        assert x.dtype == torch.float32
        assert x.is_floating_point()
        assert (x > 0).dtype == torch.bool
        assert str(x.shape[0]) == "S"
        assert isinstance(x.numel(), type(x))
        return F.relu(x.view(*x.shape) - y)

    types = {"x": TensorType(bf16, (S, 4, 8)), "y": TensorType(f32, (S, 4, 8))}
    assert str(trace_function(f, types).functions["index"].ops[-2].value.type) == "f32[S, 4, 8]"


def test_two_page_axes_are_refused_everywhere() -> None:
    with pytest.raises(VortexError, match="VX1005"):
        trace_function(lambda x: x[:, None] + x, {"x": TensorType(f32, (S,))})


def test_import_is_light() -> None:
    code = "import sys, vortex; vortex.Budget, vortex.Spec, vortex.vFlow; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Recent(vortex.vFlow):
    """No summaries at all."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(vortex.page_index().float() + q.sum())


def test_a_flow_without_fields() -> None:
    spec = vortex.Spec(page_size=4, head_dim=8, group=2)
    text = print_module(trace(Recent, spec))
    assert print_module(parse_module(text)) == text
    q, k = torch.randn(2, 8), torch.randn(40, 1, 8)
    assert oracle.step(Recent, spec, q, k, k, vortex.Budget(2)).pages == [[0, 6, 7, 8, 9]]


# the oracle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bf16", "f16", "fp8_e4m3"])
def test_the_oracle_rounds_as_storage_does(name: str) -> None:
    x = torch.cat([torch.randn(4096) * 100, torch.tensor([500.0, -1e6, math.inf, -math.inf, math.nan, 0.0, -0.0])])
    want = torch.as_tensor(narrow(x.numpy(), dtype(name)))
    torch.testing.assert_close(oracle.round_to(x, name).float(), want, rtol=0, atol=0, equal_nan=True)


def test_selection_order() -> None:
    inf, nan = math.inf, math.nan
    scores = torch.tensor([nan, -inf, 0.0, -0.0, inf, 2.0, 2.0, nan, -inf])
    order: list[int] = []
    for k in range(10):
        kept = oracle.select_pages(scores, 11, vortex.Budget(k, sink=1, recent=1))
        assert kept == sorted(kept)
        assert {0, 10} <= set(kept)
        order += [p - 1 for p in kept if p not in (0, 10) and p - 1 not in order]
    assert order == [4, 5, 6, 2, 3, 1, 8, 0, 7]


def test_a_small_row_keeps_everything_unscored() -> None:
    spec = vortex.Spec(page_size=4, head_dim=8, group=2)
    q, k, v = torch.randn(4, 8), torch.randn(21, 2, 8), torch.randn(21, 2, 8)
    done = oracle.step(find_flow("quest"), spec, q, k, v, vortex.Budget(3), scale=0.3)
    assert done.pages == [list(range(6))] * 2
    assert done.scores == [None, None]
    k2, v2 = (x.repeat_interleave(2, dim=1).transpose(0, 1) for x in (k, v))
    want = F.scaled_dot_product_attention(q[:, None], k2, v2, scale=0.3)[:, 0]
    torch.testing.assert_close(done.out, want, rtol=1e-5, atol=1e-5)
    assert done.lse.shape == (4,)


def test_a_step_scores_its_candidates_alone() -> None:
    spec = vortex.Spec(page_size=4, head_dim=8, group=2, dtype="f32")
    q, k, v = torch.randn(4, 8), torch.randn(50, 2, 8), torch.randn(50, 2, 8)
    budget = vortex.Budget(2, ratio=Fraction(1, 2), sink=2, recent=1)
    done = oracle.step(Named, spec, q, k, v, budget, layer=7)
    n = 13
    for h in range(2):
        pages, scores = done.pages[h], done.scores[h]
        assert len(pages) == budget.total(n) == 6
        assert pages[:2] == [0, 1]
        assert pages[-1] == 12
        assert scores is not None
        assert scores.shape == (10,)
        k_pages, v_pages = (x[8:48, h].unflatten(0, (10, 4)) for x in (k, v))
        fields = oracle.summaries(Named, spec, k_pages, v_pages)
        again = oracle.score(Named, spec, q[2 * h : 2 * h + 2], fields, layer=7, first_page=2)
        torch.testing.assert_close(scores, again, rtol=0, atol=0)
    spared = oracle.step(
        Named,
        spec,
        q,
        k,
        v,
        budget,
        layer=7,
        fields=[oracle.summaries(Named, spec, *(x[:48, h].unflatten(0, (12, 4)) for x in (k, v))) for h in range(2)],
    )
    assert spared.pages == done.pages


def test_narrow_casts_round_and_arithmetic_stays_fp32() -> None:
    def f(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16) + 1 / 3

    x = torch.randn(6)
    module = trace_function(f, {"x": TensorType(f32, (S,))})
    with Fp32Arithmetic():
        want = f(x)
    assert want.dtype == torch.float32
    np.testing.assert_array_equal(run(module, {"x": x}, 6)[0], want.numpy())


def test_what_is_computed_of_captured_tensors_is_computed_as_in_the_oracle() -> None:
    """Ties go to the lower index and rounded numbers are fp32 again, though torch computes while the flow is traced."""
    table = torch.tensor([2, 0, -2, 2, -1, -2, 0, 0, 2, -1, -2, -2, -1, 0, -1, 2.0])

    def f(x: Tensor) -> Tensor:
        return x[table.topk(2).indices] + table[:2].bfloat16() / 3 + table.argsort(descending=True)[3:5] + WEIGHTS

    x = torch.randn(16)
    module = trace_function(f, {"x": TensorType(f32, (16,))})
    with Fp32Arithmetic():
        want = f(x)
    np.testing.assert_array_equal(run(module, {"x": x}, 6)[0], want.numpy())
    assert [d.type for d in module.declared("resource") if d.name == "WEIGHTS"] == [TensorType(bf16, (2,))]


WEIGHTS = torch.tensor([0.5, 3.0]).bfloat16()


def test_the_type_of_the_cache() -> None:
    assert vortex.Spec(dtype="f16").kv_dtype == "f16"
    assert "kv_dtype" not in vortex.Spec().attrs()
    spec = vortex.Spec(page_size=4, head_dim=8, kv_dtype="fp8_e4m3")
    assert vortex.Spec.of_attrs(spec.attrs()) == spec
    for wrong in (
        {"kv_dtype": "f16"},
        {"kv_dtype": "i32"},
        {"kv_dtype": "fp4"},
        {"dtype": "f32", "kv_dtype": "fp8_e4m3"},
    ):
        with pytest.raises(vortex.VortexError, match="VX1021"):
            vortex.Spec(**wrong)
    # a number of the cache is byte * scale, in fp32; what the cache has given back once stays as it is
    k, v = oracle.kept(torch.randn(5, 4, 8) * 9, spec, 0.3), oracle.kept(torch.randn(5, 4, 8), spec, 0.001)
    assert torch.equal(oracle.kept(k, spec, 0.3), k)
    assert v.abs().max() == torch.tensor(0.001) * 448
    module = trace(find_flow("quest"), spec)
    assert [str(a.type) for a in module.functions["cache"].args] == ["f32[4, 8]"] * 2
    assert [str(d.type) for d in module.declared("field")] == ["bf16[8]"] * 2
    torch.testing.assert_close(oracle.summaries(find_flow("quest"), spec, k, v)["lo"], k.amin(1).bfloat16())


# torch's own meaning of Python ---------------------------------------------------------------------


BODIES = [
    "s = cache.c @ q.mean(0)\nt = s\nt *= -1\nreturn vortex.topk(s)",
    "s = cache.c @ q.mean(0)\nt = s.clone()\nt *= -1\nreturn vortex.topk(s + 0.5 * t)",
    "s = cache.c @ q.mean(0)\nheld = [s, s]\nheld[0] += 1\nreturn vortex.topk(held[1] * s)",
    "x = cache.c\nx *= 2\nreturn vortex.topk(cache.c @ q.mean(0))",
    "s = cache.c @ q[0]\na = torch.zeros_like(s)\nb = torch.zeros_like(s)\na += s\nb -= 2\nreturn vortex.topk(a * b)",
    "u = (cache.c @ q.mean(0) * 2).view(-1)\nu -= 1\nreturn vortex.topk(u)",
    "i = vortex.page_index()\ni += 2\nreturn vortex.topk(cache.c @ q[0] + i * vortex.page_index())",
    "s = cache.c @ q[0]\np = F.pad(s, (1, 0))\ns *= -3\nreturn vortex.topk(p[:-1] + s)",
    "s = cache.c @ q[0]\np = F.pad(s, (1, 1))\ns *= -3\nreturn vortex.topk(p.unfold(-1, 3, 1).amax(-1) + s)",
    "s = cache.c @ q[0]\np = s[1:]\ns *= -3\nreturn vortex.topk(F.pad(p, (0, 1)) + s)",
    "n = cache.c.shape[1:].numel() * q.shape[:1][0]\nreturn vortex.topk((cache.c @ q[0] - n) ** 2)",
    "x = q.sum()\ny = x.sort(0).values\ny += 1\nz, _ = x.max(0)\nz *= 2\nreturn vortex.topk(cache.c @ q[0] * x + y)",
    "n = cache.c.shape[0]\nreturn vortex.topk((cache.c @ q[0] - abs(n)) * (-n // 2) - +n)",
    "x = (cache.c * 3).int()\nx **= 2\ni = vortex.page_index() ** 2\nreturn vortex.topk(x.float() @ q[1] + i)",
    "x = copy.deepcopy(q)\nx *= 2\ny = copy.copy(x)\nreturn vortex.topk(cache.c @ (x + y + q).sum(0))",
    "x = F.pad(cache.c, (0, 0))\nx *= 2\nreturn vortex.topk((x - cache.c) @ q[0])",
    "x = (cache.c * 2).unfold(-1, 8, 1)\nx += 1\nreturn vortex.topk(x.flatten(1) @ q[0])",
    "x = copy.copy(q.clone())\nx += 1\nreturn vortex.topk(cache.c @ (x + q).sum(0))",
    "x = (cache.c * 2).unfold(-1, 4, 4)\nx += 1\nreturn vortex.topk(x.flatten(1) @ q[0])",
    "x = (q + 1)[q.sum(0)[:2].argmax()]\nx *= 2\nreturn vortex.topk(cache.c @ x)",
    "vortex.topk(cache.c @ q[0])\nreturn vortex.topk(cache.c @ q[1])",
    "first = vortex.topk(cache.c @ q[0])\nvortex.topk(cache.c @ q[1])\nreturn first",
    "return vortex.topk({**cache}['c'] @ q[0] + dict(cache.items())['c'] @ q[1] + cache.get('c') @ q[0])",
]
PARTS = """
import copy, vortex, torch
import torch.nn.functional as F
@vortex.register("{name}")
class Made(vortex.vFlow):
    def create_cache(self, spec):
        return {{"{field}": vortex.Field(8)}}
    def forward_cache(self, page):
        return {{"{field}": page.k.mean(0) * (1 + vortex.layer())}}
    def forward_indexer(self, q, cache):
{body}
"""


def written(path: Path, body: str, name: str = "made_here", field: str = "c") -> type[vortex.vFlow]:
    indented = "\n".join("        " + line for line in body.splitlines())
    path.write_text(PARTS.format(name=name, field=field, body=indented))
    return find_flow(str(path))


def agrees(cls: type[vortex.vFlow]) -> None:
    spec = vortex.Spec(page_size=4, head_dim=8, group=2, dtype="f32")
    q, k, v = data(spec, 6)
    kept = q.clone()
    want = oracle.score(cls, spec, q, oracle.summaries(cls, spec, k, v))
    assert torch.equal(q, kept)
    np.testing.assert_allclose(traced_scores(cls, spec, q, k, v), want.numpy(), rtol=1e-4, atol=1e-4)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("vortex.flow.flow._REGISTRY", {})
    return tmp_path / "flow.py"


@pytest.mark.parametrize("body", BODIES)
def test_assignment_and_selection_as_in_torch(file: Path, body: str) -> None:
    agrees(written(file, body))


@pytest.mark.parametrize("name", ["keys", "items", "values", "get", "pop", "copy", "_fields", "float", "layer"])
def test_fields_of_any_name(file: Path, name: str) -> None:
    agrees(written(file, f"return vortex.topk(cache.{name} @ q[0] + cache['{name}'] @ q[1])", field=name))


@pytest.mark.parametrize("around", ["double", "bf16", "meta", "inference", "autocast", "grad"])
def test_what_is_on_around_a_flow_changes_nothing(file: Path, around: str) -> None:
    body = "w = torch.tensor([0.1, 0.2]) + torch.ones(2)\nreturn vortex.topk((cache.c @ q.T) @ w)"
    spec = vortex.Spec(page_size=4, head_dim=8, group=2, dtype="f32")
    q, k, v = data(spec, 6)

    def scores() -> tuple[str, Tensor]:
        cls = written(file, body)
        return print_module(trace(cls, spec)), oracle.score(cls, spec, q, oracle.summaries(cls, spec, k, v))

    program, want = scores()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype({"double": torch.float64, "bf16": torch.bfloat16}.get(around, before))
        on: Any = {
            "meta": lambda: torch.device("meta"),
            "inference": torch.inference_mode,
            "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        }.get(around, torch.enable_grad)
        with on():
            again, got = scores()
    finally:
        torch.set_default_dtype(before)
    assert again == program
    assert torch.equal(got, want)
    assert not got.is_inference()


def test_layer_in_forward_cache(file: Path) -> None:
    cls, spec = written(file, BODIES[0]), vortex.Spec(page_size=4, head_dim=8, group=2)
    _, k, v = data(spec, 6)
    want = k.float().mean(1) * 4
    torch.testing.assert_close(oracle.summaries(cls, spec, k, v, layer=3)["c"], want.bfloat16())


# files ---------------------------------------------------------------------------------------------


BODY = BODIES[7]


@pytest.mark.parametrize(
    "head",
    [
        b"\xef\xbb\xbfSCALE = 1\n",
        b"# -*- coding: latin-1 -*-\nNAME = 'caf\xe9'\nassert len(NAME) == 4\n",
        b"from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass C:\n    x: int\n",
        b"import pickle, typing\nclass T(typing.NamedTuple):\n    x: int\nassert pickle.loads(pickle.dumps(T(1)))\n",
        b"if __name__ == '__main__':\n    raise SystemExit(3)\n",
        b"import vortex\nfrom helpers import SCALE\n",
    ],
)
def test_files_are_read_as_python_reads_them(file: Path, head: bytes) -> None:
    written(file, BODY)
    (file.parent / "helpers.py").write_text("SCALE = 2")
    file.write_bytes(head + file.read_bytes())
    agrees(find_flow(str(file)))


def test_each_file_has_the_siblings_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortex.flow.flow._REGISTRY", {})
    found = []
    for n, scale in enumerate((2, 3)):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "sibling_of_flow.py").write_text(f"SCALE = {scale}")
        body = "from sibling_of_flow import SCALE\nreturn vortex.topk(cache.c @ q[0] * SCALE)"
        found.append(written(tmp_path / str(n) / "flow.py", body, name=f"made_{n}"))
    assert found[0].__module__ != found[1].__module__
    spec = vortex.Spec(page_size=4, head_dim=8, group=2)
    for cls, scale in zip(found, (2, 3), strict=True):
        assert f"number = {scale}}}" in print_module(trace(cls, spec))
    assert "sibling_of_flow" not in sys.modules
    (tmp_path / "0" / "sibling_of_flow.py").write_text("SCALE = 5")
    assert "number = 5}" in print_module(trace(find_flow(str(tmp_path / "0" / "flow.py")), spec))


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortex.flow.flow._REGISTRY", {})
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    (tmp_path / "pack" / "other.py").write_text("SCALE = 2")
    agrees(written(tmp_path / "pack" / "flow.py", "from .other import SCALE\n" + BODY))
    assert "pack" not in sys.modules


def test_a_class_defined_again_replaces_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortex.flow.flow._REGISTRY", {})
    scope: dict[str, Any] = {"__name__": "__main__"}
    for cell in ("<cell 1>", "<cell 2>"):
        text = PARTS.format(name="cell_flow", field="c", body=f"        return vortex.topk(cache.c @ q[0])  # {cell}")
        exec(compile(text, cell, "exec"), scope)
    agrees(find_flow("cell_flow"))


def test_integers_of_numpy() -> None:
    spec = vortex.Spec(page_size=np.int64(4), head_dim=np.int32(8), group=np.uint8(2))
    assert spec == vortex.Spec(page_size=4, head_dim=8, group=2)
    assert type(spec.attrs()["page_size"]) is int
    assert vortex.Budget(np.int64(3), sink=np.int16(1)) == vortex.Budget(3)
    assert vortex.Field(np.int64(3), np.uint8(2)).shape == (3, 2)
    with pytest.raises(VortexError, match="VX1020"):
        vortex.Budget(np.float32(3))  # type: ignore[arg-type]

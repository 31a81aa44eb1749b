"""Every torch function a flow can call, as cases: run eagerly, under the interpreter and on compiled kernels.

``x`` and its like run over pages, ``q`` is one per row. A case returns one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from vortex.ir.types import Dim, S, TensorType, bf16, f32

Shape = tuple[int | str, ...]
X, Q = ("S", 4, 8), (4, 8)


@dataclass(frozen=True)
class Case:
    """``fn`` on tensors of ``inputs`` shapes; ``domain`` says which numbers make sense."""

    name: str
    fn: Callable[..., Any]
    inputs: dict[str, Shape] = field(default_factory=lambda: {"x": X})
    domain: str = "normal"
    """normal; positive; unit (inside (-1, 1)); tiny (near 0); odd (with inf, NaN and zeros); whole (small integers)."""
    tolerance: float = 2e-5
    dtype: str = "f32"
    least: int = 0
    """Pages from which on torch gives a result for each page."""


def _c(name: str, fn: Callable[..., Any], domain: str = "normal", tolerance: float = 2e-5, **inputs: Shape) -> Case:
    return Case(name, fn, inputs or {"x": X}, domain, tolerance)


def types(case: Case) -> dict[str, TensorType]:
    """The case's inputs as types of the IR."""
    dtype = bf16 if case.dtype == "bf16" else f32
    return {n: TensorType(dtype, tuple(_dim(d) for d in shape)) for n, shape in case.inputs.items()}


def _dim(d: int | str) -> Dim:
    return S if isinstance(d, str) else d


def tensors(case: Case, pages: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Numbers for the case's inputs, exact in bf16 where the case stores bf16."""
    made = torch.Generator().manual_seed(seed)
    shapes = {n: [pages if isinstance(d, str) else d for d in shape] for n, shape in case.inputs.items()}
    values = {n: DOMAINS[case.domain](torch.randn(shape, generator=made)) for n, shape in shapes.items()}
    return {n: x.bfloat16().float() for n, x in values.items()} if case.dtype == "bf16" else values


def _odd(x: torch.Tensor) -> torch.Tensor:
    x = torch.where(x > 1.2, math.inf, torch.where(x < -1.2, -math.inf, x))
    return torch.where((x > 0.2) & (x < 0.5), math.nan, torch.where((x > -0.3) & (x < 0.0), 0.0, x))


DOMAINS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "normal": lambda x: x,
    "positive": lambda x: x.abs() + 0.1,
    "unit": lambda x: x.tanh() * 0.9,
    "tiny": lambda x: x * 1e-4,
    "odd": _odd,
    "whole": lambda x: (x * 3).round(),
}

W = torch.linspace(-1.0, 1.0, 32).reshape(4, 8)
TAPS = torch.tensor([0.25, 0.5, 0.25]).reshape(1, 1, 3)
WIDE = torch.linspace(0, 1, 7).view(1, 1, 7)
MIX = torch.linspace(-1.0, 1.0, 8 * 2 * 3).reshape(8, 2, 3)
ODD_MASK = torch.arange(8) % 2 == 0
XS, XQ = {"x": ("S",)}, {"x": X, "q": Q}

ELEMENTWISE = [
    *(
        _c(n, lambda x, n=n: getattr(torch, n)(x))
        for n in (
            "neg",
            "abs",
            "exp",
            "sin",
            "cos",
            "tanh",
            "sigmoid",
            "erf",
            "floor",
            "ceil",
            "round",
            "trunc",
            "square",
            "positive",
            "frac",
            "sign",
            "exp2",
            "expm1",
            "isfinite",
            "isinf",
            "isnan",
            "logical_not",
            "clone",
            "detach",
        )
    ),
    *(
        _c(n, lambda x, n=n: getattr(torch, n)(x), "positive")
        for n in ("log", "sqrt", "rsqrt", "log2", "log10", "log1p", "reciprocal")
    ),
    *(
        _c(f"{n}_odd", lambda x, n=n: getattr(torch, n)(x), "odd")
        for n in (
            "abs",
            "isfinite",
            "isinf",
            "isnan",
            "isposinf",
            "isneginf",
            "nan_to_num",
            "sign",
            "relu",
            "expm1",
            "log1p",
        )
    ),
    *(_c(f"{n}_tiny", lambda x, n=n: getattr(torch, n)(x), "tiny") for n in ("expm1", "log1p")),
    _c("tan", torch.tan, "unit"),
    _c("expit", torch.special.expit),
    *(
        _c(n, lambda x, q, n=n: getattr(torch, n)(x, q), **XQ)
        for n in (
            "add",
            "sub",
            "mul",
            "div",
            "maximum",
            "minimum",
            "fmax",
            "fmin",
            "hypot",
            "logaddexp",
            "rsub",
            "lt",
            "le",
            "gt",
            "ge",
            "eq",
            "ne",
            "logical_and",
            "logical_or",
            "logical_xor",
        )
    ),
    *(
        _c(f"{n}_odd", lambda x, q, n=n: getattr(torch, n)(x, q), "odd", **XQ)
        for n in ("maximum", "minimum", "fmax", "fmin", "lt", "ge", "eq", "ne")
    ),
    *(_c(n, lambda x, q, n=n: getattr(torch, n)(x, q), "positive", 1e-4, **XQ) for n in ("pow", "remainder", "fmod")),
    *(
        _c(f"{n}_odd", lambda x, q, n=n: getattr(torch, n)(x, q), "odd", **XQ)
        for n in ("fmod", "remainder", "floor_divide", "hypot")
    ),
    *(_c(f"{n}_odd", lambda x, n=n: getattr(torch, n)(x), "odd") for n in ("log2", "log10", "exp2", "tan")),
    _c("large_quotients", lambda x: torch.fmod(x * 1e6, 0.7) + (x * 1e7) % -1.3),
    _c("large_hypot", lambda x, q: torch.hypot(x * 1e30, q * 1e30) / 1e30, **XQ),
    _c("fmod_signs", lambda x, q: torch.fmod(x, q.abs() + 0.5), tolerance=1e-4, **XQ),
    _c("remainder_signs", lambda x, q: x % (q.abs() + 0.5), tolerance=1e-4, **XQ),
    _c("floor_divide", lambda x, q: x // (q.abs() + 0.5), **XQ),
    _c("div_modes", lambda x: torch.div(x, 0.7, rounding_mode="floor") + torch.div(x, 0.7, rounding_mode="trunc")),
    _c("add_alpha", lambda x, q: torch.add(x, q, alpha=0.5) + torch.sub(q, x, alpha=2), **XQ),
    _c("powers", lambda x: x**2 + x**3 - x**4 + x**1 + x**-2 + x**-1, "positive", 1e-4),
    _c("roots", lambda x: x**0.5 + x**-0.5 + x**1.5 + 2**x, "positive", 1e-4),
    _c("roots_odd", lambda x: x**0.5, "odd"),
    _c("pow_zero", lambda x: x**0 + x),
    _c("operators", lambda x, q: -x * 2 + (1 - q) / (3 + x.abs()) - +q, **XQ),
    _c("reflected", lambda x: 1 / (2 - x.tanh()) + 7 % (x.abs() + 1) + 7 // (x.abs() + 1) + W, tolerance=1e-4),
    _c("real_left", lambda x: W + x + W * x - W / (x.abs() + 1) + torch.maximum(W, x)),
    _c("python_abs", lambda x: abs(x)),
    _c("clamp", lambda x: x.clamp(-0.5, 0.5) + x.clip(min=0.1) + x.clamp(max=0.2)),
    _c("clamp_tensor", lambda x, q: torch.clamp(x, min=q, max=q + 1), **XQ),
    _c("clamp_odd", lambda x: x.clamp(-1, 1), "odd"),
    _c("clamp_min_max", lambda x: x.clamp_min(0.1) + torch.clamp_max(x, 0.1)),
    _c("lerp", lambda x, q: torch.lerp(x, q, 0.25) + x.lerp(q, q), **XQ),
    _c("addcmul", lambda x, q: torch.addcmul(x, x, q, value=0.5), **XQ),
    _c("addcdiv", lambda x, q: torch.addcdiv(x, x, q.abs() + 1, value=0.5), **XQ),
    _c("where", lambda x, q: torch.where(x > q, x, q), **XQ),
    _c("where_scalar", lambda x: torch.where(x > 0, x, -1.0) + x.where(x < 1, 2.0)),
    _c("where_real", lambda x: torch.where(ODD_MASK, x, 0.0)),
    _c("masked_fill", lambda x: x.masked_fill(x > 0, -math.inf)),
    _c("masked_fill_real", lambda x: torch.masked_fill(x, ODD_MASK, math.nan)),
    _c("bool_operators", lambda x, q: ((x > 0) & (q > 0)) | ~(x > 1) ^ (q < 0), **XQ),
    _c("bool_arithmetic", lambda x: (x > 0).float() * 2 + (x > 1) + (x > 0) * x),
    _c("bool_products", lambda x: (x > 0) * (x < 1) + (x > 2)),
    _c("nan_to_num_args", lambda x: x.nan_to_num(1.5, posinf=7.0, neginf=-7.0), "odd"),
    _c("bfloat16", lambda x: x.to(torch.bfloat16).float() * 3 + x.bfloat16()),
    _c("half", lambda x: x.half().float() * 3),
    _c("to_same", lambda x, q: x.to(q.dtype) + x.to(torch.float32) + x.type_as(q).contiguous(), **XQ),
    _c("to_int", lambda x: (x * 3).int() + (x * 3).to(torch.int32) * 2 + (x > 0).long().int()),
    _c("to_bool", lambda x: x.bool() | x.to(bool), "whole"),
    _c("int_divide", lambda x: (x * 5).int() // 3 + (x * 5).int() % 3, "normal"),
    _c("int_fmod", lambda x: torch.fmod((x * 5).int(), 3)),
    _c("int_bitwise_not", lambda x: ~(x * 5).int()),
    _c("int_clamp", lambda x: (x * 5).int().clamp(-2, 3)),
    _c("isclose", lambda x, q: torch.isclose(x, q, rtol=0.1, atol=0.1), **XQ),
    _c("isclose_odd", lambda x, q: torch.isclose(x, x) | x.isclose(q, equal_nan=True), "odd", **XQ),
    _c("augmented", lambda x: _augmented(x)),
    _c("real_base", lambda x: W.abs() ** x + torch.tensor(0.9) ** x + torch.tensor(3) ** x),
    _c("by_whole_zero", lambda x: torch.where((x / 0).isnan(), 2.0, x / 0) + (x[:, 0] / False).nan_to_num()[:, None]),
    _c("zero_times", lambda x: torch.maximum(x, x * 0) + torch.maximum(x, x * torch.tensor(0)), "odd"),
    _c("whole_zero_by", lambda x: 0 / x + 0 // x, "odd"),
    _c("beyond_fp32", lambda x: torch.where(x < 3.41e38, x * 1e39, x + -1e40).nan_to_num() / 1e39),
]


def _augmented(x: Any) -> Any:
    y = x * 2
    y += 1
    y -= x
    y *= 3
    return y


ACTIVATIONS = [
    *(
        _c(n, lambda x, n=n: getattr(F, n)(x))
        for n in (
            "relu",
            "relu6",
            "leaky_relu",
            "elu",
            "silu",
            "gelu",
            "softplus",
            "logsigmoid",
            "mish",
            "hardsigmoid",
            "hardswish",
            "hardtanh",
            "softsign",
            "tanhshrink",
            "celu",
            "selu",
            "glu",
        )
    ),
    _c("logit", lambda x: torch.logit(x.abs()) + torch.special.logit(x, eps=0.1), "unit", 1e-4),
    _c("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    _c("softplus_args", lambda x: F.softplus(x * 10, beta=2.0, threshold=5.0)),
    _c("threshold", lambda x: F.threshold(x, 0.1, -2.0)),
    _c("leaky_relu_slope", lambda x: F.leaky_relu(x, 0.3) + F.elu(x, 0.5)),
    _c("relu_method", lambda x: x.relu() + torch.relu(x).sigmoid()),
]

REDUCTIONS = [
    *(
        _c(f"{n}_{d}", lambda x, n=n, d=d: getattr(torch, n)(x, d))
        for n in ("sum", "mean", "amax", "amin")
        for d in (0, 1, -1)
    ),
    *(_c(f"{n}_two", lambda x, n=n: getattr(x, n)((0, 2))) for n in ("sum", "mean", "amax", "amin")),
    *(_c(f"{n}_all", lambda x, n=n: getattr(x, n)()) for n in ("sum", "mean", "amax", "amin", "max", "min")),
    _c("keepdim", lambda x: x - x.mean(0, keepdim=True) + x.amax(dim=(1, 2), keepdim=True)),
    _c("numpy_names", lambda x: x.sum(axis=-1) + torch.mean(x, axis=2, keepdims=True)[..., 0]),
    _c("prod", lambda x: x.prod(-1) + torch.prod(x, 1)[:, :4].sum(-1, keepdim=True), "unit"),
    _c("max_dim", lambda x: x.max(-1).values + torch.min(x, dim=-1)[0]),
    _c("max_unpacked", lambda x: _unpacked(x)),
    _c("max_pages", lambda x: x.max(0, keepdim=True).values * x),
    _c("max_other", lambda x, q: torch.max(x, q) + x.min(q), **XQ),
    _c("max_nan", lambda x: x.amax(-1), "odd"),
    _c("aminmax", lambda x: torch.aminmax(x, dim=1).max - x.aminmax(dim=1).min),
    _c("any_all", lambda x: (x > 1).any(-1).float() + (x > -1).all(-1).float() * 2),
    _c("any_all_pages", lambda x: (x > 1).any(0) | (x > -1).all(0)),
    _c("count_nonzero", lambda x: torch.count_nonzero(x, dim=1), "whole"),
    _c("sum_bool", lambda x: (x > 0).sum(-1)),
    _c("sum_dtype", lambda x: (x > 0).sum(-1, dtype=torch.float32) + x.mean(-1, dtype=torch.float32)),
    *(_c(f"{n}", lambda x, n=n: getattr(x, n)(-1)) for n in ("var", "std")),
    _c("var_args", lambda x: x.var(-1, unbiased=False) + x.var((1, 2), correction=2)[:, None]),
    _c("std_args", lambda x: torch.std(x, dim=1) + x.std((1, 2), False)[:, None]),
    _c("var_pages", lambda x: x.var(0, correction=0), tolerance=1e-4),
    _c("std_pages", lambda x: torch.std(x, dim=(0, 2), unbiased=False), tolerance=1e-4),
    _c("var_pages_unbiased", lambda x: x.var(0), tolerance=1e-4),
    _c("logsumexp", lambda x: torch.logsumexp(x, -1) + x.logsumexp((1, 2))[:, None]),
    _c("logsumexp_pages", lambda x: x.logsumexp(0)),
    _c("logsumexp_inf", lambda x: torch.logsumexp(x.masked_fill(x < 0.5, -math.inf), -1)),
    *(_c(f"softmax_{d}", lambda x, d=d: torch.softmax(x, d)) for d in (0, 1, -1)),
    _c("softmax_f", lambda x: F.softmax(x, dim=0) + x.softmax(-1, dtype=torch.float32)),
    _c("softmax_masked", lambda x: x.masked_fill(x > 1, -math.inf).softmax(0)),
    *(_c(f"log_softmax_{d}", lambda x, d=d: F.log_softmax(x, d)) for d in (0, -1)),
    _c("softmin", lambda x: F.softmin(x, dim=1)),
    *(_c(f"cumsum_{d}", lambda x, d=d: torch.cumsum(x, d)) for d in (0, -1)),
    _c("cumprod", lambda x: x.cumprod(-1) + torch.cumprod(x, 0), "unit"),
    _c("cummax", lambda x: x.cummax(0).values + torch.cummin(x, -1)[0]),
    _c("nan_sums", lambda x: torch.nansum(x, -1) + x.nanmean(1).sum(-1, keepdim=True), "odd"),
    _c("divide_by_count", lambda x: x.sum(0) / x.shape[0]),
    _c("any_all_none", lambda x: (x > 1).any(()) | (x > -1).all(())),
    _c("logsumexp_bool", lambda x: (x > 0).logsumexp(-1) + (x * 3).int().logsumexp(1).sum(-1, keepdim=True)),
    _c("softmax_dtype", lambda x: x.softmax(-1, torch.float32) + torch.log_softmax(x, 1, torch.float32)),
    _c("cummax_bool", lambda x: (x > 1).cummax(-1).values ^ (x > -1).cummin(0).values),
    _c("mean_empty", lambda x: x[:, 4:].mean(1).sum(-1) + x[..., 8:].mean((0, 2)).sum() + x[..., 8:].mean(-1)[:, 0]),
    _c("scale_by_count", lambda x: x * x.shape[0] - 2 * x.size(0) + x.shape[0]),
]


def _unpacked(x: Any) -> Any:
    values, _ = x.max(dim=1)
    return values


NORMS = [
    *(
        _c(f"vector_norm_{p}", lambda x, p=p: torch.linalg.vector_norm(x, p, dim=-1))
        for p in (0, 1, 2, 3, math.inf, -math.inf)
    ),
    _c("norm", lambda x: x.norm(dim=-1) + torch.norm(x, p=1, dim=2) + torch.linalg.norm(x, dim=-1)),
    _c("norm_all", lambda x: x.norm() + x.norm(2, (1, 2)), tolerance=1e-4),
    _c("norm_pages", lambda x: x.norm(dim=0, keepdim=True) * x, tolerance=1e-4),
    _c("normalize", lambda x: F.normalize(x, dim=-1) + F.normalize(x, p=1, dim=1)),
    _c("cosine_similarity", lambda x, q: F.cosine_similarity(x, q, dim=-1), **XQ),
    _c("cosine_similarity_ranks", lambda x, q: torch.cosine_similarity(x, q[None], 2), **XQ),
    _c("layer_norm", lambda x: F.layer_norm(x, (8,)) + F.layer_norm(x, x.shape[-2:], W, W), tolerance=1e-4),
    _c("rms_norm", lambda x: F.rms_norm(x, (8,)) + F.rms_norm(x, (8,), W[0], eps=1e-3), tolerance=1e-4),
]

PAIR: dict[str, Shape] = {"x": ("S", 8), "q": Q}
LINEAR = [
    _c("matmul_vector", lambda x, q: x @ q[0], **PAIR),
    _c("matmul_matrix", lambda x, q: torch.matmul(x, q.T), **PAIR),
    _c("matmul_left", lambda x, q: q @ x.T, **PAIR),
    _c("matmul_batched", lambda x, q: x @ q.mT, **XQ),
    _c("matmul_batch_one", lambda x, q: x @ q[None].mT, **XQ),
    _c("matmul_vector_batch", lambda x, q: x @ q[1] + (q[:, 1] @ x).sum(-1, keepdim=True), **XQ),
    _c("matmul_pages", lambda x: x.T @ x, x=("S", 8)),
    _c("matmul_pages_vector", lambda x: x.sum(-1) @ x, x=("S", 8)),
    _c("matmul_real", lambda x: x @ W.T + torch.ones(4), x=("S", 8)),
    _c("real_matmul", lambda x: W @ x.T, x=("S", 8)),
    _c("mm_mv", lambda x, q: torch.mm(x, q.t()) + torch.mv(x, q[0])[:, None], **PAIR),
    _c("bmm", lambda x, y: torch.bmm(x, y.transpose(1, 2)), x=X, y=X),
    _c("dot", lambda x, q: torch.dot(q[0], q[1]) * x, **PAIR),
    _c("inner", lambda x, q: torch.inner(x, q), **PAIR),
    _c("outer", lambda x: torch.outer(x, W[0]), **XS),
    _c("tensordot", lambda x, q: torch.tensordot(x, q, dims=2), **XQ),
    _c("tensordot_axes", lambda x, q: torch.tensordot(x, q, dims=([2], [1])), **XQ),
    _c("linear", lambda x: F.linear(x, W, torch.arange(4.0))),
    _c("linear_module", lambda x: LINEAR_MODULE(x)),
    _c("addmm", lambda x, q: torch.addmm(x[:, :4], x, q.T, beta=0.5, alpha=2), **PAIR),
    _c("baddbmm", lambda x, y: torch.baddbmm(x[:, :, :4], x, y.mT, beta=2, alpha=0.5), x=X, y=X),
    _c("chain", lambda x, q: torch.linalg.multi_dot([x, q.T, q]), tolerance=1e-4, **PAIR),
    _c("kron", lambda x, q: torch.kron(x, q[None]) + torch.kron(q, x), **XQ),
    _c("cdist", lambda x, q: torch.cdist(x, q) + torch.cdist(x, q, p=1.0), tolerance=1e-4, **PAIR),
    _c("einsum", lambda x, q: torch.einsum("shd,hd->sh", x, q), **XQ),
    _c("einsum_implicit", lambda x, q: torch.einsum("sd,gd", x, q), **PAIR),
    _c("einsum_one", lambda x: torch.einsum("shd->ds", x)),
    _c("einsum_sum", lambda x: torch.einsum("shd->", x), tolerance=1e-4),
    _c("einsum_three", lambda x, q: torch.einsum("shd,hd,d->s", x, q, W[0]), **XQ),
    _c("einsum_outer", lambda x, q: torch.einsum("s,gd->sgd", x, q), x=("S",), q=Q),
    _c("einsum_pages", lambda x: torch.einsum("sd,sd->d", x, x), x=("S", 8)),
    _c("einsum_ellipsis", lambda x, q: torch.einsum("s...d,...d->s...", x, q), **XQ),
    _c("einsum_ellipsis_first", lambda x, q: torch.einsum("...d,gd->...g", x, q), **XQ),
    _c("einsum_ellipsis_implicit", lambda x, q: torch.einsum("...d,dg", x, q.T), **XQ),
    _c("einsum_ellipses_of_two_lengths", lambda x, q: torch.einsum("...d,...d->...", x, q), **XQ),
    _c("einsum_ellipsis_summed", lambda x, q: torch.einsum("s...,...->s", x, q), tolerance=1e-4, **XQ),
    _c("einsum_ellipsis_of_none", lambda x, q: torch.einsum("shd...,...hd->s...", x, q), **XQ),
    _c("einsum_ellipsis_of_one", lambda x: torch.einsum("...hd->...h", x), tolerance=1e-4),
    _c("einsum_one_sized", lambda x, q: torch.einsum("shd,hd->sh", x, q[:1]), **XQ),
    _c("conv1d", lambda x: F.conv1d(x[None, None], TAPS, padding=1)[0, 0], **XS),
    _c("conv1d_same", lambda x: F.conv1d(x.T, torch.ones(3, 8, 5), torch.arange(3.0), padding="same"), x=("S", 8)),
    _c("conv1d_groups", lambda x: F.conv1d(x.T[None], MIX, padding=1, groups=4), x=("S", 8)),
    _c("conv1d_wide", lambda x: F.conv1d(x.view(1, 1, -1), WIDE, padding=3).view(-1), **XS),
]
LINEAR_MODULE = torch.nn.Linear(8, 3).requires_grad_(False)

SHAPES = [
    _c("reshape", lambda x: x.reshape(-1, 32) + x.view(x.shape[0], 32) + x.reshape((x.size(0), -1))),
    _c("reshape_split", lambda x: x.reshape(x.shape[0], 2, 2, 8).sum(1) + torch.reshape(x, (-1, 2, 2, 8))[:, 0]),
    _c("reshape_front", lambda x: x.permute(1, 0, 2).reshape(2, 2, x.shape[0], 8)),
    _c("reshape_row", lambda x, q: x.reshape(-1, 32) * q.reshape(-1), **XQ),
    _c("view_as", lambda x, y: y.view_as(x) + y.reshape_as(x), x=X, y=("S", 32)),
    _c("flatten", lambda x: x.flatten(1) + torch.flatten(x, 1, 2) + x.flatten(start_dim=-2)),
    _c("ravel", lambda x: x.sum((1, 2)).ravel() + x.sum((1, 2))[None].flatten()),
    _c("unflatten", lambda x: x.unflatten(-1, (2, -1)).sum(-1) + torch.unflatten(x, 2, (2, 4)).amax(-1)),
    _c("squeeze_all", lambda x, q: x * q[:, None].squeeze(), **XQ),
    _c("unflatten_pages", lambda x: x.unflatten(0, (-1, 1))),
    _c("squeeze", lambda x: x.unsqueeze(1).squeeze(1) + torch.unsqueeze(x, -1).squeeze(3)),
    _c("squeeze_two", lambda x: x[:, None, None].squeeze((1, 2))),
    _c("transpose", lambda x: x.transpose(1, 2).swapaxes(-1, -2).mT + x.mT.swapdims(1, 2).permute(0, 2, 1)),
    _c("permute", lambda x: torch.permute(x, (2, 0, 1)) + x.permute([2, 0, 1])),
    _c("movedim", lambda x: torch.movedim(x, 0, -1) + x.moveaxis((1, 2), (0, 1))),
    _c("getitem", lambda x: x[:, 1:3, ::2].sum(-1) + x[..., -1][:, :2] + x[:, 2, None, 3]),
    _c("getitem_slices", lambda x: x[:, -3:-1, 5] + x[0:, :2][:, :, 0] + x[:][..., 1:2, -2]),
    _c("getitem_empty", lambda x: x[:, 2:2].sum((1, 2)) + x[:, 0, 0]),
    _c("getitem_row", lambda x, q: x * q[1] + q[None, ..., 0, None], **XQ),
    _c("select_narrow", lambda x: x.select(1, -1) + torch.narrow(x, 1, 1, 2).sum(1)),
    _c("split", lambda x: _halves(x)),
    _c("split_uneven", lambda x: x.split([3, 5], dim=-1)[1] + torch.split(x, 5, -1)[0]),
    _c("chunk_unbind", lambda x: x.chunk(3, -1)[0] + x.unbind(1)[2][:, None, :3]),
    _c("iterate_rows", lambda x, q: sum((x[:, i] * r for i, r in enumerate(q)), x[:, 0] * 0), **XQ),
    _c("look_up", lambda x, q: x * W[_second(q)] + q[_second(q) - 3, :, None].sum(0), **XQ),
    _c("flip", lambda x: x.flip(-1) + torch.flip(x, (1, 2))),
    _c(
        "lists_by_name",
        lambda x, q: (
            x.flip(dims=(1,))
            + torch.flip(x, dims=[-1])
            + x.permute(dims=(0, 2, 1)).reshape(shape=(-1, 32)).view(size=(x.shape[0], 4, 8))
            + q.expand(size=(3, -1, -1))[0]
            + q.repeat(repeats=(1, 2))[:, :8]
            + torch.tile(q, dims=(2, 1))[:4]
            + x.split(split_size=4, dim=2)[1].sum(-1, keepdim=True)
            + x.new_zeros(size=(8,))
            + torch.broadcast_to(q, size=(2, 4, 8))[1]
        ),
        **XQ,
    ),
    _c(
        "facts",
        lambda x, q: (
            x.data * torch.numel(q) + q.nelement() + x.ndimension()
            if torch.is_floating_point(x) and not (torch.is_complex(x) or x.is_complex() or x.is_cuda)
            else -x
        ),
        **XQ,
    ),
    _c("flip_none", lambda x, q: x.flip(()) + torch.flip(q, []) + q.roll(1, ()), **XQ),
    _c("roll", lambda x: x.roll(3, -1) + torch.roll(x, (1, -2), (1, 2))),
    _c("diff", lambda x: torch.diff(x) + x.diff(n=2, dim=1).sum(1)[:, None, :7]),
    _c("cat", lambda x, q: torch.cat([x, q.expand(x.shape[0], 4, 8), W.expand_as(x)], dim=1), **XQ),
    _c("cat_same", lambda x, y: torch.concat((x, y[..., :3], x), -1), x=X, y=X),
    _c("stack", lambda x, y: torch.stack([x, y], -1).amax(-1) + torch.stack((x, y)).sum(0), x=X, y=X),
    _c("stacks", lambda x, y, q: torch.hstack([x, y]) + torch.vstack([q, q]).mean(0), x=X, y=X, q=(8,)),
    _c("pad", lambda x: F.pad(x, (1, 2)) + F.pad(x, (1, 2, 0, 0), value=7.0)),
    _c("pad_int", lambda x: F.pad((x * 3).int(), (1, 2), value=5) * 1000000007 % 65536),
    _c("pad_cut", lambda x: F.pad(x, (-1, 3, 1, -2), value=0.5)),
    _c("expand", lambda x: x[:, :, :, None].expand(-1, -1, -1, 3).sum(-1) + x.expand(x.shape)),
    _c("expand_new", lambda x: x[:, 0].expand(2, -1, 8) + x[:, 1].broadcast_to(2, x.shape[0], 8)),
    _c("expand_pages", lambda x, q: q.expand(x.shape[0], 4, 8), **XQ),
    _c("expand_as", lambda x, q: q.expand_as(x) - q[:, :1].expand(4, 8), **XQ),
    _c("broadcast_tensors", lambda x, q: torch.broadcast_tensors(q, x)[0], **XQ),
    _c("repeat", lambda x: x.repeat(1, 2, 3)),
    _c("repeat_new", lambda x: x[:, 0].repeat(2, 1, 1)),
    _c("tile", lambda x: torch.tile(x, (2,)) + x.tile(1, 2)),
    _c("repeat_interleave", lambda x: x.repeat_interleave(3, dim=-1)),
    _c("like", lambda x: torch.zeros_like(x) + torch.ones_like(x) * x + torch.full_like(x, 0.25)),
    _c("like_row", lambda x, q: torch.ones_like(q) + x, **XQ),
    _c("new", lambda x: x.new_zeros(x.shape[0], 3) + x.new_ones((3,)) + x.new_full((x.shape[0], 1), 2.5)),
    _c("ones_only", lambda x: torch.ones_like(x)),
    _c("mask_like", lambda x: torch.zeros_like(x > 0) | (x > 0)),
]


PICK, MASK, TABLE = torch.tensor([5, 0, -1, 5]), torch.arange(8) % 3 == 1, torch.arange(12.0).reshape(4, 3) ** 2
EDGES = torch.tensor([-1.0, -0.25, -0.25, 0.0, 0.75])
PS: dict[str, Shape] = {"x": ("S", 3)}


def _whole(x: Any) -> Any:
    """Integers with ties."""
    return (x * 2).round()


GATHERS = [
    _c("index_list", lambda x: x[:, [2, 0, 2]] + x[:, :3][..., [0, 1, 2, 3, 4, 5, 6, 7]]),
    _c("index_tensor", lambda x: x[..., PICK] * x[:, :, PICK.numpy()] + x[:, None, [1, 3, 3], :4].sum(2)),
    _c("index_spaced", lambda x: x[..., [7, 5, 3, 1]] + x[:, :, range(0, 8, 2)] + x[..., torch.tensor([0, 0, 0, 0])]),
    _c("index_mask", lambda x: x[..., MASK] + x[:, :, [False, True] * 4][..., :3]),
    _c("index_mask_two", lambda x: x[:, W > 0.3] + x[:, W[:, 0] > 0].sum((1, 2))[:, None]),
    _c("index_matrix", lambda x: x[:, :, torch.tensor([[0, 5], [7, 2]])] + x[..., 0][:, [[0, 1], [3, 2]]][:, None]),
    _c("index_two", lambda x: x[:, [0, 3, 1], [5, 5, 2]] + x[:, [[1], [2], [0]], [2, 3]].sum(2)),
    _c("index_apart", lambda x: x[:, None][:, [0, 0], :, [3, 1]].movedim(0, -1)),
    _c("index_row", lambda x, q: x * q[[1, 1, 0, 3]] + q[torch.tensor([0, 2]), 3].sum(), **XQ),
    _c("index_tuple", lambda x: x[..., (2, 0, 2)] + x[:, (0, 3, 1), (5, 5, 2)].sum(-1)[:, None, None]),
    _c("index_empty", lambda x: x[..., []].sum(-1) + x[:, torch.tensor([], dtype=torch.long)].sum((1, 2))[:, None]),
    _c("index_traced", lambda x, q: x[..., q.abs().sum(0).topk(3).indices] + q[q[:, 0].argmax(), 0], **XQ),
    _c("index_traced_two", lambda x, q: x[:, q.argsort(0)[:2], 0].sum(1), **XQ),
    _c("index_per_page", lambda x: TABLE[x[..., 0].argmax(-1)] + TABLE.mT[:, x[..., 1].argmin(-1)].mT, "odd"),
    _c("index_clamped", lambda x: TABLE[x[:, 0, 0].int().clamp(0, 3)] + TABLE[x[:, 0, 0].int() % 2 - 2]),
    _c("index_mask_pages", lambda x: x[..., [3, 1]] > 0),
    _c(
        "index_select",
        lambda x: x.index_select(2, torch.tensor([3, 1])) + torch.index_select(x, -1, PICK.abs())[..., :2],
    ),
    _c("index_select_traced", lambda x, q: x.index_select(1, q[0, :4].argsort()), **XQ),
    _c(
        "gather",
        lambda x: torch.gather(x, 2, x.argsort(-1)[..., :3]) + x.gather(1, x.argsort(1)[:, :2, :3]).sum(1, True),
    ),
    _c("take_along_dim", lambda x, q: x.take_along_dim(q.argsort(-1)[None, :, 2:5], dim=2), **XQ),
    _c("take_along_flat", lambda x, q: x * torch.take_along_dim(q, torch.tensor([3, 30]))[0], **XQ),
    _c("take", lambda x, q: x * torch.take(q, torch.tensor([[3, -1], [0, 9]])).sum(), **XQ),
    _c(
        "unfold",
        lambda x: (
            x.unfold(2, 3, 2).amax(-1) + x.unfold(-1, 4, 2).sum(-1) + x.unfold(1, 2, 2)[:, :, :3].sum((1, 3))[:, None]
        ),
    ),
]

ORDER = [
    *(_c(f"argsort_{d}", lambda x, d=d: x.argsort(dim=d, stable=True), dom) for d, dom in ((1, "normal"), (-1, "odd"))),
    *(
        _c(f"sort_{n}", lambda x, n=n: torch.sort(_whole(x), -1, descending=n > 1).indices, dom)
        for n, dom in ((0, "normal"), (1, "odd"), (2, "normal"), (3, "odd"))
    ),
    _c(
        "sort_values",
        lambda x: (
            x.sort().values + torch.sort(x, dim=1, descending=True)[0] + torch.msort(x.movedim(0, 1)).movedim(1, 0)
        ),
    ),
    _c("sort_values_odd", lambda x: x.sort(descending=True).values, "odd"),
    _c("sort_int", lambda x: _whole(x).int().sort(-1, descending=True).values + _whole(x).int().argsort(1).int()),
    _c("sort_bool", lambda x: (x > 0).sort(-1).values),
    _c("topk", lambda x: x.topk(3).values + torch.topk(x, 3, dim=-1, largest=False).values + x.topk(3, 2).indices),
    _c(
        "topk_none",
        lambda x: x.topk(0).values.sum(-1) + x.sort(1).indices.float().cumsum(1)[:, :0].sum(1)[:, :4] + x[..., 0],
    ),
    _c("topk_odd", lambda x: x.topk(5, -1).values, "odd"),
    _c("topk_ties", lambda x: _whole(x).topk(6, 2, largest=False).indices * 10 + x.topk(6, sorted=False)[1], "whole"),
    _c(
        "kthvalue",
        lambda x: x.kthvalue(3).values + torch.kthvalue(x, 2, 1, keepdim=True).values.sum(-1) + x.kthvalue(1).indices,
    ),
    _c("median", lambda x: x.median(-1).values + x.median(1, keepdim=True).values.sum(-1) + x.median(-1)[1]),
    _c("median_odd", lambda x: x.median(-1).values, "odd"),
    _c("median_odd_place", lambda x: x.median(-1).indices, "odd"),
    _c("median_all", lambda x, q: x * q.median() + torch.median(q, 0)[0], **XQ),
    *(
        _c(f"argmax_{dom}", lambda x: x.argmax(-1) * 10 + torch.argmin(x, 1, keepdim=True).sum(-1), dom)
        for dom in ("normal", "odd", "whole")
    ),
    _c("argmax_all", lambda x, q: x * q.argmax() + torch.argmin(q), **XQ),
    _c("max_indices", lambda x: x.max(-1).indices * 10 + torch.min(_whole(x), dim=-1)[1], "odd"),
    _c("max_int_indices", lambda x: _whole(x).int().max(1, keepdim=True).indices),
    _c(
        "quantile",
        lambda x: x.quantile(0.3, -1) + torch.quantile(x, 0.5, dim=1, keepdim=True).sum(-1) + x.quantile(1.0, 2),
    ),
    _c("quantile_odd", lambda x: x.quantile(0.75, -1), "odd"),
    _c("bucketize", lambda x: torch.bucketize(x, EDGES) * 10 + torch.bucketize(x, EDGES, right=True), "odd"),
    _c(
        "searchsorted",
        lambda x: torch.searchsorted(EDGES, x) + torch.searchsorted(EDGES, x, side="right", out_int32=True),
    ),
    _c(
        "bucketize_edges",
        lambda x: (
            torch.bucketize((x * 4).round() / 4, EDGES) + torch.searchsorted(EDGES, (x * 4).round() / 4, right=True)
        ),
    ),
]

NEIGHBOURS = [
    _c("roll_pages", lambda x: x.roll(1, 0) + torch.roll(x, (-2, 3), (0, 2))),
    _c("roll_far", lambda x: x.sum((1, 2)).roll(40) + x.sum((1, 2)).roll(-35, 0)),
    _c("shift", lambda x: F.pad(x.sum((1, 2)), (1, 0))[:-1] + F.pad(x[:, 0, 0], (0, 2), value=7.0)[2:]),
    _c(
        "shift_first",
        lambda x: F.pad(x, (0, 0, 0, 0, 3, 0))[:-3] - F.pad(x, (0, 0, 0, 0, 0, 1))[1:, :, [0, 2, 1, 3, 4, 5, 6, 7]],
    ),
    _c(
        "shift_to_size",
        lambda x: F.pad(x[:, 0, 0], (2, 1))[: x.shape[0]] + F.pad(x[:, 0, 1], (2, 1)).narrow(0, 1, x.shape[0]),
    ),
    _c("shift_bool", lambda x: F.pad(x[:, 0] > 0, (0, 0, 1, 0), value=True)[:-1]),
    _c("shift_int", lambda x: F.pad((x[:, 0] * 3).int(), (0, 0, 1, 0), value=5)[:-1] * 2),
    Case(
        "cut_and_pad",
        lambda x: F.pad(x[1:, :, 0], (0, 0, 0, 1)) + F.pad(x[:-1, :, 1], (0, 0, 1, 0), value=-1.0),
        least=1,
    ),
    _c("pad_moves", lambda x: F.pad(x[..., 0].T, (1, -1)) + F.pad(x[..., 0].T, (-1, 1))),
    _c(
        "pad_edge",
        lambda x: (
            F.pad(x[:, 0].T, (1, 0), mode="replicate")[..., :-1] + F.pad(x[:, 1].T, (0, 2), mode="replicate")[:, 2:]
        ),
    ),
    _c(
        "pad_modes",
        lambda x: (
            F.pad(x, (2, 1), mode="replicate") + F.pad(x, (1, 2), mode="reflect") - F.pad(x, (3, 0), mode="circular")
        ),
    ),
    _c(
        "windows",
        lambda x: F.pad(x[:, 0].T, (1, 1)).unfold(-1, 3, 1).amax(-1) + F.pad(x[:, 0].T, (2, 0)).unfold(1, 3, 1)[..., 0],
    ),
    _c("windows_weighted", lambda x: F.pad(x[:, 0, 0], (2, 2)).unfold(0, 5, 1) @ torch.arange(5.0)),
    _c(
        "max_pool",
        lambda x: F.max_pool1d(x[:, 0].T, 3, 1, 1) + F.max_pool1d(x[:, 0].T[None], 5, stride=1, padding=2)[0],
    ),
    _c("max_pool_odd", lambda x: F.max_pool1d(x[:, 0].T, 3, 1, 1), "odd"),
    _c("max_pool_apart", lambda x: F.max_pool1d(F.pad(x[:, 0].T, (2, 2), value=0.3), 3, 1, dilation=2)),
    _c(
        "avg_pool",
        lambda x: F.avg_pool1d(x[:, 0].T, 3, 1, 1) + F.avg_pool1d(x[:, 0].T, 5, 1, 2, count_include_pad=False),
    ),
    _c("avg_pool_padded", lambda x: F.avg_pool1d(F.pad(x[None, :, 0, 0], (3, 0), value=2.0), 4, 1)[0]),
    _c(
        "pool_known",
        lambda x: F.max_pool1d(x, 3, 2, 1) + F.avg_pool1d(x, 2) + F.avg_pool1d(x, 3, 2, 1, count_include_pad=False),
    ),
    _c("conv_causal", lambda x: F.conv1d(F.pad(x.T[None], (2, 0)), MIX[:, :1], groups=8)[0].T, x=("S", 8)),
    _c("conv_ahead", lambda x: F.conv1d(F.pad(x[None], (0, 1)), TAPS[..., :2])[0], **XS),
    _c(
        "conv_uneven",
        lambda x: F.conv1d(F.pad(x.T, (1, 3)), torch.linspace(0, 1, 2 * 8 * 5).reshape(2, 8, 5)),
        x=("S", 8),
    ),
]


def _second(q: Any) -> Any:
    return (q * 0).int().sum(dtype=torch.int32) + 2


def _halves(x: Any) -> Any:
    a, b = x.split(4, dim=-1)
    return a * b


CASES: list[Case] = [*ELEMENTWISE, *ACTIVATIONS, *REDUCTIONS, *NORMS, *LINEAR, *SHAPES, *GATHERS, *ORDER, *NEIGHBOURS]
CASES += [
    Case(f"{c.name}_bf16", c.fn, c.inputs, c.domain, c.tolerance, "bf16")
    for c in CASES
    if c.name
    in (
        "mul",
        "index_list",
        "topk",
        "shift",
        "sum_0",
        "softmax_0",
        "matmul_matrix",
        "reshape",
        "cat_same",
        "max_dim",
        "where",
    )
]
assert len({c.name for c in CASES}) == len(CASES)

"""The nonlinear functions of neural networks, from elementary ones."""

from __future__ import annotations

import math
from typing import Any

from vortex.flow.axes import axis
from vortex.flow.elementwise import clamp, expm1, log1p
from vortex.flow.logic import is_int, where
from vortex.flow.optable import traces
from vortex.flow.shapes import sliced
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import emit, refuse
from vortex.ir.dialects import flow


@traces("relu", "F.relu", to="flow.maximum")
def relu(input: Any) -> vTensor:
    """max(x, 0)"""
    x = lift(input)
    return emit(flow.Maximum, x, lift(0) if is_int(x) else lift(0.0))


@traces("F.relu6", to="flow.maximum, flow.minimum")
def relu6(input: Any) -> vTensor:
    """Gives x limited to [0, 6]"""
    return hardtanh(input, 0.0, 6.0)


@traces("F.hardtanh", to="flow.maximum, flow.minimum")
def hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0) -> vTensor:
    """Gives x limited to [min_val, max_val]"""
    x = lift(input)
    return clamp(x, int(min_val), int(max_val)) if is_int(x) else clamp(x, min_val, max_val)


@traces("F.leaky_relu", to="where")
def leaky_relu(input: Any, negative_slope: float = 0.01) -> vTensor:
    """Gives x where positive, else negative_slope * x"""
    x = lift(input)
    return where(x > 0.0, x, x * negative_slope)


@traces("F.threshold", to="where")
def threshold(input: Any, threshold: float, value: float) -> vTensor:
    """Gives x where above the threshold, else the value"""
    x = lift(input)
    return where(x <= threshold, value, x)


@traces("F.elu", to="where")
def elu(input: Any, alpha: float = 1.0) -> vTensor:
    """Gives x where positive, else alpha * (exp(x) - 1)"""
    x = lift(input)
    return where(x > 0.0, x, expm1(x) * alpha)


@traces("F.silu", to="x * sigmoid(x)")
def silu(input: Any) -> vTensor:
    """Gives x * sigmoid(x)"""
    x = lift(input)
    return x * x.sigmoid()


@traces("F.gelu", to="x * (1 + erf(x / sqrt 2)) / 2, or its tanh form")
def gelu(input: Any, *, approximate: str = "none") -> vTensor:
    """Gives x times the normal distribution function of x."""
    x = lift(input)
    if approximate == "none":
        return x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1.0)
    if approximate != "tanh":
        raise refuse(f"approximate={approximate!r}", "approximate is 'none' or 'tanh'")
    return x * 0.5 * (((x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)).tanh() + 1.0)


@traces("F.softplus", to="where, log1p")
def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> vTensor:
    """log(1 + exp(beta * x)) / beta; x above the threshold"""
    x = lift(input)
    z = x * beta
    return where(z > threshold, x, log1p(z.exp()) / beta)


@traces("F.logsigmoid", to="min(x, 0) - log1p(exp(-|x|))")
def logsigmoid(input: Any) -> vTensor:
    """log(sigmoid(x))"""
    x = lift(input)
    return emit(flow.Minimum, x, lift(0.0)) - log1p((-x.abs()).exp())


@traces("F.mish", to="x * tanh(softplus(x))")
def mish(input: Any) -> vTensor:
    """Gives x * tanh(softplus(x))"""
    x = lift(input)
    return x * softplus(x).tanh()


@traces("F.hardsigmoid", to="clamp(x + 3, 0, 6) / 6")
def hardsigmoid(input: Any) -> vTensor:
    """Piecewise linear sigmoid."""
    return clamp(lift(input) + 3.0, 0.0, 6.0) / 6.0


@traces("F.hardswish", to="x * clamp(x + 3, 0, 6) / 6")
def hardswish(input: Any) -> vTensor:
    """Gives x * hardsigmoid(x)"""
    x = lift(input)
    return x * clamp(x + 3.0, 0.0, 6.0) / 6.0


@traces("F.softsign", to="x / (1 + |x|)")
def softsign(input: Any) -> vTensor:
    """Gives x / (1 + |x|)"""
    x = lift(input)
    return x / (x.abs() + 1.0)


@traces("F.tanhshrink", to="x - tanh(x)")
def tanhshrink(input: Any) -> vTensor:
    """Gives x - tanh(x)"""
    x = lift(input)
    return x - x.tanh()


@traces("celu", "F.celu", to="where")
def celu(input: Any, alpha: float = 1.0) -> vTensor:
    """Gives x where positive, else alpha * (exp(x / alpha) - 1)"""
    x = lift(input)
    return where(x > 0.0, x, expm1(x / alpha) * alpha)


@traces("selu", "F.selu", to="where")
def selu(input: Any) -> vTensor:
    """Scaled elu that keeps mean and variance."""
    x = lift(input)
    return where(x > 0.0, x, expm1(x) * 1.6732632423543772) * 1.0507009873554805


@traces("F.glu", to="a * sigmoid(b)")
def glu(input: Any, dim: Any = -1) -> vTensor:
    """First half of an axis times the sigmoid of the second."""
    x = lift(input)
    i = axis(dim, x.ndim)
    d = x.dims[i]
    if not isinstance(d, int) or d % 2:
        raise refuse(f"axis {i} of {x.type} has no two halves", "an even axis other than the pages")
    return sliced(x, i, 0, d // 2) * sliced(x, i, d // 2, d // 2).sigmoid()


@traces("logit", "special.logit", to="log(x / (1 - x))")
def logit(input: Any, eps: float | None = None) -> vTensor:
    """Inverse of sigmoid; eps limits x to [eps, 1 - eps]."""
    x = lift(input) if eps is None else clamp(input, eps, 1.0 - eps)
    return (x / (1.0 - x)).log()

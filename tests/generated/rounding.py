"""Productions of functions that round: flows with them are compared within a tolerance."""

from __future__ import annotations

from tests.generated.values import Body, Unfit, axis_of, static, without


def smooth(b: Body) -> None:
    x = b.pick()
    form, most = b.rng.choice([
        ("torch.exp({0}.clamp(-4, 4))", 60.0), ("torch.sigmoid({0})", 1.0), ("torch.tanh({0})", 1.0),
        ("F.silu({0})", x.most), ("torch.sqrt({0}.abs())", x.most + 1), ("torch.log({0}.abs() + 1)", x.most),
        ("torch.sin({0})", 1.0), ("F.gelu({0})", x.most), ("{0} / ({0}.abs() + 1)", 1.0), ("{0}.rsqrt()", 1e4),
        ("F.softplus({0})", x.most + 1), ("{0}.square()", x.most**2), ("torch.exp2({0}.clamp(-6, 6))", 64.0),
    ])[:2]  # fmt: skip
    if "rsqrt" in form:
        form, most = "({0}.abs() + 0.25).rsqrt()", 2.0
    b.add(form, (x,), x.shape, most=most)


def share(b: Body) -> None:
    x = b.pick(lambda v: bool(v.shape))
    i = b.rng.choice([0, len(x.shape) - 1])
    if isinstance(x.shape[i], str) and x.numel > 16:
        raise Unfit
    form = b.rng.choice([f"{{0}}.softmax({i})", f"{{0}}.softmax({i})", f"{{0}}.mean({i}, keepdim=True)"])
    shape = x.shape if "softmax" in form else without(x, i, keep=True)
    if "mean" in form and isinstance(x.shape[i], str):
        form, shape = "{0} - {0}.mean(0)", x.shape
    b.add(form, (x,), shape, most=2 * x.most if "-" in form else x.most)


def logsum(b: Body) -> None:
    x = b.pick(lambda v: bool(static(v)))
    i = axis_of(b, x)
    form = b.rng.choice([f"{{0}}.logsumexp({i})", f"{{0}}.std({i}, correction=0)", f"{{0}}.norm(dim={i})"])
    b.add(form, (x,), without(x, i), most=4 * x.most + 6)


SMOOTH = [smooth, smooth, smooth, share, share, logsum]

"""``vortex_torch.indexer``: operators of ``forward_indexer``.

Their operands are ``[1, D0, D1]`` where they come from the query alone and ``[S, D0, D1]`` over all candidate pages.
"""

from __future__ import annotations

from typing import Any

import torch

from vortex.compat.vortex_torch import calls, operators
from vortex.compat.vortex_torch.calls import ContextBase, Output, tensor
from vortex.compat.vortex_torch.learned import LearnedQuery as LearnedQuery
from vortex.compat.vortex_torch.learned import Parameter as Parameter
from vortex.compat.vortex_torch.operators import bad, inner_dim, number, same_object, vOp
from vortex.flow.selection import Selection, topk, union
from vortex.flow.tensor import vTensor


class Context(ContextBase):
    """``ctx`` of this side."""


def _here(op: str) -> calls.Call:
    call = calls.current(op)
    if call.method != "forward_indexer":
        why = "an operator of vortex_torch.indexer is called in forward_cache"
        raise calls.refuse(op, why, "operators of forward_cache are those of vortex_torch.cache")
    return call


def _over_pages(op: str, x: Any) -> Any:
    if not calls.has_pages(x):
        why = f"{calls.shape_of(x)} is the same for all pages, and it works over the pages"
        raise calls.refuse(op, why, "an operand [S, D0, D1], one made from a field of the cache")
    return x


def _only_ctx(op: str, rest: tuple[Any, ...], more: dict[str, Any], how: str) -> None:
    """Refuse what an operator of this side is given beside its operands and ctx."""
    if len(rest) + len(more) > 1 or more.keys() - {"ctx"}:
        why = f"it is given {len(rest) + len(more)} arguments beside its operands"
        raise calls.refuse(op, why, f"write {how}")


class _One:
    """Called with one operand."""

    def __call__(self: Any, x: Any, *rest: Any, **more: Any) -> Any:
        _here(self.op)
        _only_ctx(self.op, rest, more, "op(x, ctx=ctx)")
        return self.compute(tensor(self.op, x))


class _Two:
    """Called with two operands."""

    def __call__(self: Any, x: Any, y: Any, *rest: Any, **more: Any) -> Any:
        _here(self.op)
        _only_ctx(self.op, rest, more, "op(x, y, ctx=ctx)")
        x, y = tensor(self.op, x), tensor(self.op, y)
        return getattr(self, "checked", self.compute)(x, y)


class Relu(_One, operators.Relu):
    """x where x >= alpha, else beta."""


class Sigmoid(_One, operators.Sigmoid):
    """1 / (1 + exp(beta * x + alpha))."""


class Silu(_One, operators.Silu):
    """x / (1 + exp(beta * x + alpha))."""


class Add_Mul(_One, operators.Add_Mul):
    """beta * x + alpha."""


class Abs(_One, operators.Abs):
    """abs(beta * x + alpha)."""


class Log(_One, operators.Log):
    """log(beta * x + alpha)."""


class Exp(_One, operators.Exp):
    """exp(beta * x + alpha)."""


class MaskSlice(_One, operators.MaskSlice):
    """alpha inside a slice, beta outside."""


class Reshape(_One, operators.Reshape):
    """Other last two axes."""


class Transpose(_One, vOp):
    """The last two axes swapped."""

    def compute(self, x: Any) -> Any:
        return x.transpose(1, 2)


class _Reduction(_One, operators.Reduction):
    """A fold that may be over the pages: ``[S, D0, D1]`` becomes ``[1, D0, D1]``."""

    allowed = (0, 1, 2)

    def compute(self, x: Any) -> Any:
        return self.fold(_over_pages(self.op, x) if self.dim == 0 else x, self.dim, True)


class Mean(_Reduction, operators.Mean):
    """Mean along an axis."""


class Max(_Reduction, operators.Max):
    """Largest along an axis."""


class Min(_Reduction, operators.Min):
    """Smallest along an axis."""


class Sum(_Reduction, operators.Sum):
    """Sum along an axis."""


class L2Norm(_Reduction, operators.L2Norm):
    """Euclidean norm along an axis."""


class GeMM(_Two, operators.GeMM):
    """y x^T, where y may be a :class:`Parameter`."""

    def __call__(self, x: Any, y: Any, *rest: Any, **more: Any) -> Any:
        if isinstance(y, Parameter):
            if calls.is_per_page(tensor(self.op, x)):
                why = f"x is {calls.shape_of(x)}, one for each page, and y is a Parameter"
                raise calls.refuse(self.op, why, "a Parameter takes what comes from the query alone, [1, Nx, K]")
            y = y.here()
        return super().__call__(x, y, *rest, **more)


class GeMV(_Two, operators.GeMM):
    """y x^T of two tensors with one row each, ``[S, 1, 1]``."""

    def compute(self, x: Any, y: Any) -> Any:
        if x.shape[1] != 1 or y.shape[1] != 1:
            why = f"x is {calls.shape_of(x)} and y is {calls.shape_of(y)}: both have one row"
            raise calls.refuse(self.op, why, "GeMM takes matrices; Mean(dim=1) makes one row of the query's heads")
        return super().compute(x, y)


class Multiply(_Two, operators.Multiply):
    """x * y."""


class Add(_Two, operators.Add):
    """alpha * x + beta * y."""


class Maximum(_Two, operators.Maximum):
    """The larger of x and y."""


class Minimum(_Two, operators.Minimum):
    """The smaller of x and y."""


class WhereEqual(_Two, operators.WhereEqual):
    """0 where x == y, else -1e30."""


class WhereNotEqual(_Two, operators.WhereNotEqual):
    """0 where x != y, else -1e30."""


class WhereGreater(_Two, operators.WhereGreater):
    """0 where x > y, else -1e30."""


class WhereGreaterEqual(_Two, operators.WhereGreaterEqual):
    """0 where x >= y, else -1e30."""


class WhereLess(_Two, operators.WhereLess):
    """0 where x < y, else -1e30."""


class WhereLessEqual(_Two, operators.WhereLessEqual):
    """0 where x <= y, else -1e30."""


class Kron(_Two, vOp):
    """Kronecker product over the axes in ``dim``; the other one broadcasts."""

    def __init__(self, dim: Any = (1, 2)) -> None:
        super().__init__()
        listed = (dim,) if isinstance(dim, int) else tuple(dim)
        self.dims = {inner_dim(self.op, d, (1, 2)) for d in listed}

    def compute(self, x: Any, y: Any) -> Any:
        for d in {1, 2} - self.dims:
            if x.shape[d] != y.shape[d] and 1 not in (x.shape[d], y.shape[d]):
                why = f"{calls.shape_of(x)} and {calls.shape_of(y)} do not broadcast along axis {d}"
                raise calls.refuse(self.op, why, "equal sizes or 1 there, or dim=(1, 2)")
        # [S, x1, y1, x2, y2], an axis that is not multiplied out being one of the pair
        x = x.reshape(x.shape[0], *((x.shape[1], 1) if 1 in self.dims else (1, x.shape[1])), x.shape[2], 1)
        y = y.reshape(y.shape[0], 1, y.shape[1], *((1, y.shape[2]) if 2 in self.dims else (y.shape[2], 1)))
        made = x * y
        return made.reshape(made.shape[0], made.shape[1] * made.shape[2], made.shape[3] * made.shape[4])


class Softmax(vOp):
    """Softmax of scale * x over the pages."""

    def __init__(self, dim: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.dim, self.scale = inner_dim(self.op, dim, (0,)), number(self.op, "scale", scale)

    @same_object
    def __call__(self, x: Any, ctx: Any = None) -> Any:
        _here(self.op)
        x = _over_pages(self.op, tensor(self.op, x))
        return (x if self.scale == 1 else x * self.scale).softmax(0)


class Normalize(vOp):
    """x divided by its sum over the pages."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = inner_dim(self.op, dim, (0,))

    @same_object
    def __call__(self, x: Any, ctx: Any = None) -> Any:
        _here(self.op)
        x = _over_pages(self.op, tensor(self.op, x))
        return x / x.sum(0, keepdim=True)


class Conv1d(vOp):
    """Sum over k of weight[k] * x[s + k - K // 2] along the pages; beyond the candidates x is 0."""

    def __init__(self, weight: Any, dim: int = 0, dtype: Any = torch.bfloat16) -> None:
        super().__init__()
        self.dim = inner_dim(self.op, dim, (0,))
        try:
            self.weight = torch.as_tensor(weight).detach().to(dtype).float()
        except (TypeError, ValueError, RuntimeError) as e:
            raise bad(self.op, f"weight is no tensor: {e}", "weight is a nested list [K][D0][D1]") from None
        if self.weight.ndim != 3:
            raise bad(self.op, f"weight has shape {list(self.weight.shape)}", "weight is a nested list [K][D0][D1]")

    def __call__(self, x: Any, ctx: Any = None) -> Any:
        _here(self.op)
        x = _over_pages(self.op, tensor(self.op, x))
        inner = tuple(x.shape[1:])
        taps = self.weight
        if any(w not in (1, d) for w, d in zip(taps.shape[1:], inner, strict=True)):
            why = f"weight is {list(taps.shape)} and x is {calls.shape_of(x)}"
            raise calls.refuse(self.op, why, "weight [K][D0][D1] with the last two sizes of x")
        k, channels = taps.shape[0], inner[0] * inner[1]
        taps = taps.expand(k, *inner).reshape(k, channels)
        if k % 2 == 0:  # one more tap of 0 at the end leaves K // 2 before the page
            taps = torch.cat([taps, torch.zeros(1, channels)])
        lines = x.reshape(x.shape[0], channels).T[None]
        mixed = torch.nn.functional.conv1d(lines, taps.T[:, None].contiguous(), padding=k // 2, groups=channels)
        return mixed[0].T.reshape(x.shape[0], *inner)


class Load(vOp):
    """A field as a value of its own."""

    def __call__(self, x: Any, ctx: Any = None) -> Any:
        _here(self.op)
        x = tensor(self.op, x)
        return vTensor(x.value) if isinstance(x, vTensor) else x.clone()


class Save(vOp):
    """Keeps a value in a field for the next step of the request; what reads the field after that reads the value."""

    def __call__(self, x: Any, y: Any, ctx: Any = None) -> Any:
        call = _here(self.op)
        x = tensor(self.op, x)
        name = next((n for n, f in call.seen.items() if f is y), None)
        if name is None:
            why = "its second operand is no field of the cache"
            raise calls.refuse(self.op, why, 'write save(x, cache["name"], ctx=ctx)')
        shape = call.declared.shapes[name]
        if tuple(x.shape[1:]) != shape or not calls.has_pages(x):
            why = f"it is given {calls.shape_of(x)}, and field '{name}' is declared {shape}"
            raise calls.refuse(self.op, why, "a value [S, r, c], one made from the cache")
        call.saved[name] = x
        call.seen[name] = vTensor(x.value) if isinstance(x, vTensor) else x.clone()
        return y


class topK(vOp):
    """Writes ``o``: the pages with the best scores, as many as the budget leaves."""

    tolerate_ratio = 0.0

    def __call__(self, x: Any, o: Any, ctx: Any = None) -> Any:
        _here(self.op)
        # a share of 1 would be no choice at all
        chosen = topk(_scores(self.op, x), tolerance=min(self.tolerate_ratio, 0.99))
        return _end(self.op, o, chosen, "op(score, o, ctx=ctx)")


def _scores(op: str, x: Any) -> Any:
    """A score ``[S, 1, 1]`` as one number a page."""
    x = tensor(op, x)
    if tuple(x.shape[1:]) != (1, 1) or not calls.has_pages(x):
        why = f"the score is {calls.shape_of(x)}"
        raise calls.refuse(op, why, "a score [S, 1, 1], made from the cache; Max, Mean and Sum fold dim 1 and 2")
    return x.reshape(x.shape[0])


def _end(op: str, o: Any, selection: Selection, how: str) -> Any:
    """Take what a terminal operator has chosen."""
    call = calls.current(op)
    if not isinstance(o, Output):
        raise calls.refuse(op, f"its output is a {type(o).__name__}", f"write {how}")
    if call.selection is not None:
        raise calls.refuse(op, "o is written already", "one topK, approxTopK or Union ends forward_indexer")
    call.selection = selection
    return o


class approxTopK(topK):
    """As topK, which may miss a share of the best."""

    def __init__(self, tolerate_ratio: float = 0.0) -> None:
        super().__init__()
        self.tolerate_ratio = number(self.op, "tolerate_ratio", tolerate_ratio)
        if not 0 <= self.tolerate_ratio <= 1:
            raise bad(self.op, f"tolerate_ratio is {tolerate_ratio!r}", "a share from 0 to 1")


class TopK(vOp):
    """The k best pages by a score, for :class:`Union`."""

    def __init__(self, k: int) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise bad(self.op, f"k is {k!r}", "k is a positive integer")
        self.k = k

    def __call__(self, x: Any, ctx: Any = None) -> Any:
        _here(self.op)
        part = Part(topk(_scores(self.op, x), pages=self.k))
        return part, part


class Part:
    """What TopK gives, twice, as block tables and as lengths: only Union can use it."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection


class Union(vOp):
    """Writes ``o``: the pages of two TopK."""

    def __call__(self, a: Any, b: Any, o: Any, ctx: Any = None) -> Any:
        _here(self.op)
        parts = []
        for x in (a, b):
            part = x[0] if isinstance(x, tuple | list) and x else x
            if not isinstance(part, Part):
                why = f"an operand is a {type(part).__name__}, not what TopK gives"
                raise calls.refuse(self.op, why, "write op(topk_a(s, ctx=ctx), topk_b(t, ctx=ctx), o, ctx=ctx)")
            parts.append(part.selection)
        return _end(self.op, o, union(*parts), "op(a, b, o, ctx=ctx)")


def get_ctx(*_: Any) -> Context:
    """A context without a step."""
    return Context()

"""Products of matrices and tensors, all one op: a contraction of two operands."""

from __future__ import annotations

import string
from collections import Counter
from typing import Any

from vortex.flow.axes import axis
from vortex.flow.norms import vector_norm
from vortex.flow.optable import traces
from vortex.flow.shapes import reshaped
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import emit, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Dim, Sym

BATCH = "abcdefgh"


def _drop(x: vTensor, letters: str, gone: str) -> tuple[vTensor, str]:
    """Without the axes (of size 1) called ``gone``."""
    kept = [i for i, c in enumerate(letters) if c not in gone]
    if len(kept) == len(letters):
        return x, letters
    return emit(flow.Reshape, x, shape=tuple(x.dims[i] for i in kept)), "".join(letters[i] for i in kept)


def contract(a: vTensor, b: vTensor, la: str, lb: str, out: str) -> vTensor:
    """One dot; an axis of size 1 in one operand alone is broadcast, as torch does."""
    if not a.type.dtype.is_float and not b.type.dtype.is_float:
        raise refuse(f"{a.type} and {b.type}: torch contracts integers as integers", "a.float() and b.float()")
    da, db = dict(zip(la, a.dims, strict=True)), dict(zip(lb, b.dims, strict=True))
    ones_a = "".join(c for c in la if c in db and da[c] == 1 != db[c])
    ones_b = "".join(c for c in lb if c in da and db[c] == 1 != da[c])
    a, la = _drop(a, la, ones_a)
    b, lb = _drop(b, lb, ones_b)
    return emit(flow.Dot, a, b, spec=f"{la},{lb}->{out}")


@traces("matmul", "Tensor.__matmul__", "linalg.matmul", to="flow.dot")
def matmul(input: Any, other: Any) -> vTensor:
    """Matrix product, batched over leading axes."""
    a, b = lift(input), lift(other)
    if not a.ndim or not b.ndim:
        raise refuse(f"{a.type} @ {b.type}: both need an axis", "at least one axis each; * multiplies numbers")
    la = BATCH[len(BATCH) - a.ndim + 2 :] + "ij" if a.ndim > 1 else "j"
    lb = BATCH[len(BATCH) - b.ndim + 2 :] + "jk" if b.ndim > 1 else "j"
    inner_a, inner_b = a.dims[-1], b.dims[-2] if b.ndim > 1 else b.dims[0]
    if inner_a != inner_b:
        raise refuse(f"{a.type} @ {b.type}: inner sizes {inner_a} and {inner_b} differ", "equal inner sizes")
    batch = max(la[:-2], lb[:-2], key=len)
    return contract(a, b, la, lb, batch + la[-2:-1] * (a.ndim > 1) + lb[-1:] * (b.ndim > 1))


def _ranks(name: str, a: vTensor, b: vTensor, ranks: tuple[int, int]) -> None:
    if (a.ndim, b.ndim) != ranks:
        raise refuse(f"{a.type} and {b.type}", f"{name} takes tensors of rank {ranks[0]} and {ranks[1]}")


@traces("mm", to="flow.dot")
def mm(input: Any, mat2: Any) -> vTensor:
    """Product of two matrices."""
    a, b = lift(input), lift(mat2)
    _ranks("mm", a, b, (2, 2))
    return matmul(a, b)


@traces("bmm", to="flow.dot")
def bmm(input: Any, mat2: Any) -> vTensor:
    """Product of two batches of matrices."""
    a, b = lift(input), lift(mat2)
    _ranks("bmm", a, b, (3, 3))
    if a.dims[0] != b.dims[0]:
        raise refuse(f"batches {a.dims[0]} and {b.dims[0]} differ", "equal first sizes")
    return matmul(a, b)


@traces("mv", to="flow.dot")
def mv(input: Any, vec: Any) -> vTensor:
    """Matrix times vector."""
    a, b = lift(input), lift(vec)
    _ranks("mv", a, b, (2, 1))
    return matmul(a, b)


@traces("dot", "vdot", to="flow.dot")
def dot(input: Any, other: Any) -> vTensor:
    """Sum of the products of two vectors."""
    a, b = lift(input), lift(other)
    _ranks("dot", a, b, (1, 1))
    return matmul(a, b)


@traces("inner", to="flow.dot")
def inner(input: Any, other: Any) -> vTensor:
    """Contraction of the last axes."""
    a, b = lift(input), lift(other)
    if not a.ndim or not b.ndim:
        return a * b
    la, lb = BATCH[: a.ndim - 1], "lmnopqrs"[: b.ndim - 1]
    return emit(flow.Dot, a, b, spec=f"{la}k,{lb}k->{la}{lb}")


@traces("outer", "ger", to="flow.dot")
def outer(input: Any, vec2: Any) -> vTensor:
    """All products of two vectors."""
    a, b = lift(input), lift(vec2)
    _ranks("outer", a, b, (1, 1))
    return emit(flow.Dot, a, b, spec="i,j->ij")


@traces("tensordot", to="flow.dot")
def tensordot(a: Any, b: Any, dims: Any = 2) -> vTensor:
    """Contraction of listed axes."""
    x, y = lift(a), lift(b)
    if isinstance(dims, int):
        left, right = list(range(x.ndim - dims, x.ndim)), list(range(dims))
    else:
        left, right = [axis(d, x.ndim) for d in dims[0]], [axis(d, y.ndim) for d in dims[1]]
    la, lb = list("abcdefgh"[: x.ndim]), list("lmnopqrs"[: y.ndim])
    if len(left) != len(right) or min([*left, 0]) < 0 or max([*right, 0]) >= max(y.ndim, 1):
        raise refuse(f"dims={dims} for {x.type} and {y.type}", "as many axes of one as of the other")
    for i, j in zip(left, right, strict=True):
        lb[j] = la[i]
    out = [c for i, c in enumerate(la) if i not in left] + [c for j, c in enumerate(lb) if j not in right]
    return contract(x, y, "".join(la), "".join(lb), "".join(out))


@traces("F.linear", to="flow.dot")
def linear(input: Any, weight: Any, bias: Any = None) -> vTensor:
    """Gives x @ weight.T + bias"""
    x, w = lift(input), lift(weight)
    if not x.ndim or w.ndim not in (1, 2) or x.dims[-1] != w.dims[-1]:
        raise refuse(f"{x.type} and weight {w.type}: last sizes differ", "x [..., in], weight [out, in]")
    batch = BATCH[: x.ndim - 1]
    out = "o" * (w.ndim - 1)
    y = emit(flow.Dot, x, w, spec=f"{batch}k,{out}k->{batch}{out}")
    return y if bias is None else y + lift(bias)


@traces("addmm", to="flow.dot, flow.add")
def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> vTensor:
    """Gives beta * x + alpha * (a @ b)"""
    return lift(input) * float(beta) + mm(mat1, mat2) * float(alpha)


@traces("einsum", to="flow.dot, pair by pair")
def einsum(equation: Any, *operands: Any) -> vTensor:
    """Einstein sum of any number of operands; letters are axes, each once in an operand, and ``...`` the rest."""
    if not isinstance(equation, str):
        raise refuse("the first argument is not an equation", "torch.einsum('gd,sd->sg', q, c)")
    listed = operands[0] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    parts = [lift(x) for x in listed]
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        counts = Counter(left.replace(",", "").replace("...", ""))
        out = "..." * ("..." in left) + "".join(sorted(c for c, n in counts.items() if n == 1))
    terms, out = _without_ellipsis(equation, terms, out, parts)
    _check_equation(equation, terms, out, parts)
    if len(parts) == 1:
        return _einsum_one(parts[0], terms[0], out)
    x, lx = parts[0], terms[0]
    for i in range(1, len(parts)):
        later = set(out).union(*terms[i + 1 :])
        kept = "".join(dict.fromkeys(c for c in lx + terms[i] if c in later))
        target = out if i == len(parts) - 1 else kept
        x, lx = contract(x, parts[i], lx, terms[i], target), target
    return x


def _without_ellipsis(equation: str, terms: list[str], out: str, parts: list[vTensor]) -> tuple[list[str], str]:
    """A letter for each axis of an ellipsis, which operands have aligned at the last one, and the sum over those that
    the result has no ellipsis for.
    """
    if any(term.count("...") > 1 for term in (*terms, out)):
        raise refuse(f"'{equation}' has two ellipses in an operand", "one ellipsis, as in '...d,gd->...g'")
    free = [c for c in string.ascii_letters if c not in equation]
    sizes = [x.ndim - len(term.replace("...", "")) for term, x in zip(terms, parts, strict=False) if "..." in term]
    most = max(sizes, default=0)
    if min(sizes, default=0) < 0 or most > len(free) or ("..." in out and not sizes):
        why = f"'{equation}' does not fit operands {', '.join(str(x.type) for x in parts)}"
        raise refuse(why, "a letter or an ellipsis for each axis, as in '...d,gd->...g'")
    named = "".join(free[:most])
    made = [
        term.replace("...", named[most - (x.ndim - len(term.replace("...", ""))) :]) if "..." in term else term
        for term, x in zip(terms, parts, strict=False)
    ]
    return [*made, *terms[len(parts) :]], out.replace("...", named)


def _check_equation(equation: str, terms: list[str], out: str, parts: list[vTensor]) -> None:
    form = "one letter for each axis, as in 'gd,sd->sg'"
    if len(terms) != len(parts):
        raise refuse(f"'{equation}' has {len(terms)} operands, {len(parts)} are given", "one term for each operand")
    for term, x in zip(terms, parts, strict=True):
        if len(set(term)) != len(term) or (term and not term.isalpha()):
            raise refuse(f"'{equation}': '{term}' names an axis twice or is not letters", form)
        if len(term) != x.ndim:
            raise refuse(f"'{equation}': '{term}' is for rank {len(term)}, the operand is {x.type}", form)
    if len(set(out)) != len(out) or not set(out) <= set("".join(terms)):
        raise refuse(f"'{equation}': '{out}' repeats an axis or has one that no operand has", form)
    known: dict[str, Dim] = {}
    for term, x in zip(terms, parts, strict=True):
        for letter, d in zip(term, x.dims, strict=True):
            if known.setdefault(letter, d) not in (d, 1) and d != 1:
                raise refuse(f"'{equation}': '{letter}' is {known[letter]} and {d}", "one size for each letter")
            known[letter] = d if known[letter] == 1 else known[letter]


def _einsum_one(x: vTensor, term: str, out: str) -> vTensor:
    gone = tuple(i for i, c in enumerate(term) if c not in out)
    if gone:
        x = emit(flow.ReduceSum, x, axes=gone)
        term = "".join(c for c in term if c in out)
    return x if term == out else emit(flow.Transpose, x, perm=tuple(term.index(c) for c in out))


@traces("baddbmm", to="flow.dot, flow.add")
def baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> vTensor:
    """Gives beta * x + alpha * (a @ b), batched"""
    return lift(input) * float(beta) + bmm(batch1, batch2) * float(alpha)


@traces("linalg.multi_dot", to="flow.dot, from the left")
def multi_dot(tensors: Any) -> vTensor:
    """Product of several matrices."""
    x = lift(tensors[0])
    for m in tensors[1:]:
        x = matmul(x, m)
    return x


@traces("kron", to="flow.mul, flow.reshape")
def kron(input: Any, other: Any) -> vTensor:
    """Every element of a times all of b; a page axis of one meets size 1 in the other."""
    a, b = lift(input), lift(other)
    rank = max(a.ndim, b.ndim)
    left: list[Dim] = [*[1] * (rank - a.ndim), *a.dims]
    right: list[Dim] = [*[1] * (rank - b.ndim), *b.dims]
    merged: list[Dim] = []
    for m, n in zip(left, right, strict=True):
        if isinstance(m, int) and isinstance(n, int):
            merged.append(m * n)
        elif 1 in (m, n):
            merged.append(m if isinstance(m, Sym) else n)
        else:
            raise refuse(f"{a.type} and {b.type}: pages times {n if isinstance(m, Sym) else m}", "pages beside size 1")
    a = reshaped(a, [d for m in left for d in (m, 1)])
    b = reshaped(b, [d for n in right for d in (1, n)])
    return reshaped(a * b, merged)


@traces("cdist", to="sqrt(sum((a - b) ** 2))")
def cdist(x1: Any, x2: Any, p: float = 2.0) -> vTensor:
    """Distance of every row of one to every row of the other."""
    a, b = lift(x1), lift(x2)
    if min(a.ndim, b.ndim) < 2 or a.dims[-1] != b.dims[-1]:
        raise refuse(f"{a.type} and {b.type}", "[..., P, M] and [..., R, M]")
    return vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)

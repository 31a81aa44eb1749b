"""What the declarations share: broadcasting, promotion, and the kinds of ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vortex.budget import Cap
from vortex.ir.core import Op, Value
from vortex.ir.ranking import Ranked
from vortex.ir.types import Dim, DType, S, SelectionType, Sym, TensorType, bool_, f32, i32, selection

TWICE = "the result has two page axes"
"""What is wrong where the pages of two operands are axes of their own."""
TWO_AXES = "all candidates meet the pages of a shortlist"
"""What is wrong where an op mixes page axes."""
PAGES_AND_BLOCKS = "pages meet blocks of pages"
"""The same where one is that of the other's blocks."""
MOST_PAGES = 2**25
"""More than a part of a selection can take, so that sums over parts are 32-bit numbers."""


def tensor(o: Op, v: Value) -> TensorType:
    """The tensor type of an operand; a selection is refused."""
    if not isinstance(v.type, TensorType):
        o.require(False, f"%{v.name} is a {v.type}, a tensor is needed")
    assert isinstance(v.type, TensorType)
    return v.type


def one_page_axis(o: Op, dtype: DType, shape: tuple[Dim, ...]) -> TensorType:
    """The type of that shape; two page axes are refused."""
    o.require(sum(isinstance(d, Sym) for d in shape) <= 1, TWICE)
    return TensorType(dtype, shape)


def broadcast(o: Op, *shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The numpy broadcast of the shapes; the page axis fits itself and 1."""
    out: list[Dim] = []
    for back in range(1, max(map(len, shapes), default=0) + 1):
        dims = {s[-back] for s in shapes if len(s) >= back} - {1}
        if len(dims) > 1:
            axes = [d for d in dims if isinstance(d, Sym)]
            why = TWO_AXES if len({d.blocks for d in axes}) < 2 else PAGES_AND_BLOCKS
            o.require(len(axes) < 2, f"{why}: {' and '.join(map(show, shapes))}")
            o.require(False, f"shapes {' and '.join(map(show, shapes))} do not broadcast")
        out.append(dims.pop() if dims else 1)
    return tuple(reversed(out))


def show(shape: tuple[Dim, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def arithmetic(dtypes: list[DType]) -> DType:
    return i32 if all(not d.is_float for d in dtypes) else f32


def alike(*arrays: Any) -> tuple[Any, ...]:
    """The operands in the type that arithmetic on all of them has; numpy alone would go to fp64."""
    to = np.int32 if all(x.dtype.kind != "f" for x in arrays) else np.float32
    return tuple(x.astype(to, copy=False) for x in arrays)


@dataclass(eq=False, repr=False)
class View(Op):
    """Only renames the elements of ``x``."""

    x: Value
    role = "view"


@dataclass(eq=False, repr=False)
class Ranking(Op):
    """Puts pages in an order by their scores and takes some of them."""

    only_ranks: ClassVar[bool] = True
    """Nothing but the order of the scores matters, so that an increasing map of them changes nothing."""

    @property
    def scored(self) -> Value:
        """The operand with one number for each page, by which pages are ordered."""
        raise NotImplementedError(self.name)

    def pages_of(self, score: Value) -> Sym:
        """The page axis of a score; anything but one number per page is refused."""
        t = tensor(self, score)
        one = len(t.shape) == 1 and t.pages is not None
        self.require(one, f"the score must be one number per page, [S], not {show(t.shape)}")
        assert t.pages is not None
        return t.pages


@dataclass(eq=False, repr=False)
class Selection(Op):
    """Ends the index function: the pages that a row attends to. What a kind of selection adds is an op of its own."""

    role = "selection"

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of: each an order of the candidates, and how many of them are taken."""
        raise NotImplementedError(self.name)

    @property
    def cap(self) -> Cap:
        """What bounds how many pages are selected."""
        parts = self.parts
        always = len(parts) > 1 or any(part.always_scores for part in parts)
        return Cap(sum(not part.most for part in parts), sum(part.most for part in parts), always)


@dataclass(eq=False, repr=False)
class Part(Ranking, Selection):
    """The best candidates by one score, ``most`` of them or, where that is 0, as many as the budget leaves."""

    role = "selection"

    only_ranks: ClassVar[bool] = False

    def infer(self) -> SelectionType:
        pages = self.pages_of(self.scored)
        listed = None if self.near is None else tensor(self, self.near)
        if listed is None:
            self.require(pages == S, f"which candidates the pages of {pages} are has to be an operand: the shortlist")
        else:
            fits = listed == TensorType(i32, (pages,)) and pages.blocks == 1
            self.require(fits, f"{listed} does not list the pages that {show((pages,))} scores")
        self.require(0 <= self.most < MOST_PAGES, f"pages is {self.most}, not below {MOST_PAGES}")
        return selection

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self,)

    @property
    def near(self) -> Value | None:
        """The operand that says which candidates the pages that are scored are, where they are those of a shortlist."""
        return None

    @property
    def most(self) -> int:
        """The most pages that are taken; 0 where the budget says."""
        return 0

    @property
    def counted(self) -> Value | None:
        """The operand that says how many of the candidates are taken, where one does."""
        return None

    @property
    def share(self) -> int:
        """The share of all candidates' mass that is reached, in 2^-24; 0 where masses do not matter."""
        return 0

    @property
    def always_scores(self) -> bool:
        """Rows are scored even where the budget has room for all their pages."""
        return self.counted is not None or self.share > 0

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        """The scores with the order that :func:`vortex.ir.ranking.ranking` gives them."""
        known = dict(zip(self.operands, operands, strict=True))
        count = None if self.counted is None else int(known[self.counted])
        near = None if self.near is None else known[self.near]
        return Ranked(known[self.scored], self.most, count, self.share, near, row.pages)


@dataclass(eq=False, repr=False)
class Unary(Op):
    """One number in, one number out."""

    x: Value
    role = "elementwise"
    widens = True
    makes: ClassVar[DType] = f32

    def infer(self) -> TensorType:
        return tensor(self, self.x).with_dtype(self.makes)

    def computes_in(self) -> DType:
        """The type that the operand is converted to before the scalar emitter sees it."""
        return f32


@dataclass(eq=False, repr=False)
class Binary(Op):
    """Two broadcast operands; int32 when both are integers, else fp32."""

    a: Value
    b: Value
    role = "elementwise"
    widens = True

    def infer(self) -> TensorType:
        a, b = tensor(self, self.a), tensor(self, self.b)
        return one_page_axis(self, self.dtype(a.dtype, b.dtype), broadcast(self, a.shape, b.shape))

    def dtype(self, a: DType, b: DType) -> DType:
        return arithmetic([a, b])

    def computes_in(self) -> DType:
        """The type that both operands are converted to before the scalar emitter sees them."""
        return tensor(self, self.value).dtype


@dataclass(eq=False, repr=False)
class Compare(Binary):
    """Two broadcast operands compared; bool. Every comparison with NaN is false, except ``ne``."""

    def dtype(self, a: DType, b: DType) -> DType:
        return bool_

    def computes_in(self) -> DType:
        return arithmetic([tensor(self, self.a).dtype, tensor(self, self.b).dtype])


@dataclass(eq=False, repr=False)
class Logical(Compare):
    """Two broadcast bools."""

    def dtype(self, a: DType, b: DType) -> DType:
        self.require(a == b == bool_, f"needs bool operands, got {a} and {b}")
        return bool_

    def computes_in(self) -> DType:
        return bool_


@dataclass(eq=False, repr=False)
class Reduce(Op):
    """Folds the listed axes, in index order; ``S`` among them makes one number per row."""

    x: Value
    axes: tuple[int, ...]
    keepdims: bool = False
    role = "nest"
    widens = True

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        ok = len(set(self.axes)) == len(self.axes) and all(0 <= a < len(t.shape) for a in self.axes)
        self.require(ok, f"axes {list(self.axes)} of {t}")
        kept = [1 if i in self.axes else d for i, d in enumerate(t.shape) if self.keepdims or i not in self.axes]
        return TensorType(self.dtype(t.dtype), tuple(kept))

    def dtype(self, x: DType) -> DType:
        return arithmetic([x])

    def crosses_pages(self) -> bool:
        return tensor(self, self.x).page_axis in self.axes

    def evaluate(self, x: Any) -> Any:
        return self.fold(x, self.axes, self.keepdims)

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        raise NotImplementedError

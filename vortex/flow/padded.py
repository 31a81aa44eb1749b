"""A tensor with more or fewer pages than a row has, until it is cut or padded to S pages again."""

from __future__ import annotations

from typing import Any

from vortex.errors import BAD_SHAPE
from vortex.flow.axes import axis, number
from vortex.flow.dispatch import call_method
from vortex.flow.tensor import PageDim, Withheld, vTensor
from vortex.flow.tracer import active, emit, fail, refuse
from vortex.ir.dialects import flow

How = tuple[int, int, str, float]


class Padded(Withheld):
    """``x`` with ``before`` and ``after`` pages around it, ``outside`` as ``flow.shift`` has it; negative are cut off.

    Cutting it back to S pages makes a shift: padded[i + at] is x[i + at - before].
    """

    TAKES = ("unfold", "narrow")
    """Methods, beside indexing, that give one result for each page again."""

    def __init__(self, x: vTensor, before: int, after: int, outside: str = "fill", fill: float = 0.0) -> None:
        self.x, self.how = x, (before, after, outside, fill)

    @property
    def extra(self) -> int:
        """How many pages it has beside S."""
        return self.how[0] + self.how[1]

    @property
    def pages(self) -> str:
        """How many it has, in words."""
        return f"S {'+' if self.extra > 0 else '-'} {abs(self.extra)} pages"

    def refusal(self) -> Exception:
        way = "F.pad(x, (1, 0))[..., :-1]" if self.extra > 0 else "F.pad(x[1:], (0, 1)), or better F.pad(x, (0, 1))[1:]"
        return fail(
            BAD_SHAPE,
            op=active().call or "a tensor padded along the pages",
            why=f"the operand has {self.pages}, {flow.show(self.x.dims)} padded or cut",
            expected=f"make it S pages first, e.g. {way}; .unfold, F.conv1d and pools take what is padded",
        )

    def __getattr__(self, name: str) -> Any:
        if name in self.TAKES:
            return lambda *args, **kwargs: call_method(name, (self, *args), kwargs)
        return super().__getattr__(name)

    def __getitem__(self, key: Any) -> Any:  # type: ignore[override]
        return call_method("__getitem__", (self, key), {})

    def at(self, place: int) -> vTensor:
        """One element for each page: of page s, element s + place of what is padded."""
        before, _, outside, fill = self.how
        return shifted(self.x, before - place, outside, fill)

    def windows(self, size: int, step: int) -> list[vTensor]:
        """The elements of the window that begins at each page's place; refused unless there is one for each page."""
        if step != 1 or size != self.extra + 1:
            raise refuse(
                f"windows of {size}, {step} apart, of S + {self.extra} pages are not one for each page",
                f"windows of {self.extra + 1}, 1 apart, or other padding",
            )
        return [self.at(k) for k in range(size)]

    def cut(self, k: slice) -> Any:
        """``self[k]`` along the pages."""
        before, after, outside, fill = self.how
        if k.step not in (None, 1):
            raise refuse(f"step {k.step} along the pages", "a result for every page: torch.where(mask, x, other)")
        start = number(k.start, "a slice bound") if k.start is not None else 0
        if isinstance(k.stop, PageDim):
            before, after = before - start, -before
        else:
            stop = number(k.stop, "a slice bound") if k.stop is not None else 0
            if start < 0 or stop > 0 or (k.stop is not None and stop == 0):
                raise refuse(
                    "a slice of the page axis that takes a number of pages",
                    "every result has S pages: torch.where(vortex.page_index() < n, x, other) masks, "
                    "F.pad(x, (1, 0))[..., :-1] shifts",
                )
            before, after = before - start, after + stop
        return _settled(Padded(self.x, before, after, outside, fill))

    def narrowed(self, dim: Any, start: Any, length: Any) -> Any:
        """``self.narrow(dim, start, S)``."""
        if axis(dim, self.x.ndim) != self.x.type.page_axis or not isinstance(length, PageDim):
            raise self.refusal()
        before, _, outside, fill = self.how
        first = number(start, "start")
        return _settled(Padded(self.x, before - first, first - before, outside, fill))

    def padded(self, before: int, after: int, outside: str, fill: float) -> Any:
        """More pages around it."""
        mine = self.how
        _enough(self.extra + min(before, 0) + min(after, 0))
        if any(old and new for old, new in zip(mine[:2], (before, after), strict=True)):
            raise refuse("the pages are padded or cut twice at one end", "all padding of an end in one F.pad")
        if max(mine[:2]) > 0 and max(before, after) > 0 and (outside, fill) != mine[2:]:
            raise refuse("the pages are padded with two values", "torch.where, or one value")
        how = (outside, fill) if max(before, after) > 0 else mine[2:]
        return _settled(Padded(self.x, mine[0] + before, mine[1] + after, *how))


def _settled(p: Padded) -> Any:
    """A shift where there are S pages again."""
    _enough(p.extra)
    return p if p.extra else p.at(0)


def _enough(extra: int) -> None:
    """Refuse S - 2 pages and fewer: a row may not have so many to cut off, and torch would cut off less."""
    if extra < -1:
        raise refuse(
            f"{-extra} pages are cut off, and a row may have fewer",
            "pad first, then cut: F.pad(x, (0, 2))[2:] has page s + 2 at s",
        )


def shifted(x: vTensor, by: int, outside: str, fill: float = 0.0) -> vTensor:
    """The value of the page ``by`` pages before; nothing is emitted for the page itself."""
    return emit(flow.Shift, x, by=by, outside=outside, fill=fill) if by else x

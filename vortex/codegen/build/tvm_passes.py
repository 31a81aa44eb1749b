"""TVM's own passes while it compiles a kernel: which ran, in which order, and the text of the module around each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

OWN = "vortex."
"""How the names of passes begin that this compiler adds to TVM's."""


@dataclass(frozen=True, slots=True)
class TvmPass:
    """One pass that ran, and ran no other inside."""

    symbol: str
    """Of the kernel's function; of host code and device code alike."""
    name: str
    before: str
    after: str


class _Instrument:
    """Hears of passes from TVM; of those that only run others nothing is told."""

    def __init__(self, symbols: Collection[str], heard: Callable[[TvmPass], None]) -> None:
        self._symbols = sorted(symbols, key=len, reverse=True)
        self._heard = heard
        self._open: list[tuple[str, str]] = []  # the passes under way, each with the text before; of a leaf at the end
        self._leaf = False
        self._last: tuple[Any, str] = None, ""
        self._symbol = ""

    def run_before_pass(self, module: Any, info: Any) -> None:
        self._open.append((str(info.name), self._text(module)))
        self._leaf = True

    def run_after_pass(self, module: Any, info: Any) -> None:
        name, before = self._open.pop()
        leaf, self._leaf = self._leaf, False
        if leaf and not name.startswith(OWN):
            self._note_kernel(module)
            self._heard(TvmPass(self._symbol, name, before, self._text(module)))

    def _note_kernel(self, module: Any) -> None:
        """A module has one kernel's functions: that of the host, that of the device or both."""
        names = [str(v.name_hint) for v in module.functions]
        self._symbol = next((s for s in self._symbols if any(n.startswith(s) for n in names)), self._symbol)

    def _text(self, module: Any) -> str:
        """Its text, which takes long to print and is asked for twice."""
        known, text = self._last
        if known is None or not known.same_as(module):
            text = str(module.script(show_meta=False))
            self._last = module, text
        return text


@contextmanager
def watched(symbols: Collection[str], heard: Callable[[TvmPass], None]) -> Iterator[None]:
    """``heard`` hears of each pass of TVM that runs inside, on kernels of these symbols."""
    import tvm
    from tvm.ir.instrument import pass_instrument

    with tvm.transform.PassContext(instruments=[pass_instrument(_Instrument)(symbols, heard)]):
        yield

"""TVM's own passes in a dump: ``--dump=tvm``. Numbers are those of the passes in order:

    select.sm_90a.00-start.tvm            what TVM was given, as it prints it
    select.sm_90a.17-StorageRewrite.tvm   after the pass that ran as number 17, where that changed anything
    sm_90a.tvm.txt                        all passes of each kernel in order, with the files before and after

Those that changed nothing have no file.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol

from vortex.compilation.dump import DumpDir

MOST = 8 << 20
"""Bytes of texts of one kernel; what comes after is listed without its text."""


class Ran(Protocol):
    """A pass that ran on a kernel."""

    @property
    def symbol(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def before(self) -> str: ...
    @property
    def after(self) -> str: ...


@dataclass
class TvmDump:
    """The passes of one target's kernels as they come; ``kernels`` are their names by symbol."""

    dump: DumpDir
    target: str
    kernels: dict[str, str]
    _lines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _size: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, ran: Ran) -> None:
        """One pass more."""
        kernel = self.kernels.get(ran.symbol, ran.symbol)
        lines = self._lines[kernel]
        number = len(lines)
        if not number:
            lines.append(f"  00 {'start':<38} -> {self._file(kernel, 0, 'start', ran.before)}")
            number = 1
        short = ran.name.rpartition(".")[2]
        line = f"  {number:02} {ran.name:<38}"
        if ran.after != ran.before:
            # host code and device code take turns, so that what a pass was given is not always what the last one left
            first = self.dump.holding(f"{ran.before}\n") or self._file(kernel, number, f"{short}.before", ran.before)
            line += f" {first} -> {self._file(kernel, number, short, ran.after)}"
        lines.append(line.rstrip())

    def close(self) -> None:
        """Write the list of passes."""
        text = [f"TVM's passes on the kernels for {self.target}, in order; those without files changed nothing."]
        for kernel, lines in self._lines.items():
            text += ["", kernel, *lines]
        self.dump.write(f"{self.target}.tvm.txt", "\n".join([*text, ""]))

    def _file(self, kernel: str, number: int, name: str, text: str) -> str:
        """The file that a text went to, or why there is none."""
        self._size[kernel] += len(text)
        if self._size[kernel] > MOST:
            return f"(not written: the texts of {kernel} have more than {MOST >> 20} MiB)"
        return self.dump.write(f"{kernel}.{self.target}.{number:02}-{name}.tvm", text + "\n").name

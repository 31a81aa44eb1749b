"""Which line of CUDA C++ each line of PTX and of machine code comes from, as nvcc and nvdisasm tell.

Libraries carry no line tables, which would make them three times as large. Here a kernel is compiled once more with
them, and its PTX must be what it was; line tables change no instruction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from vortex.codegen.build.nvcc import compile_with_lines
from vortex.codegen.build.toolkit import find_inspector, output
from vortex.install.scratch import scratch_folder

FILE = "kernel.cu"
Lines = tuple[int, ...]
"""For each line of a text the line of CUDA C++ it comes from, from 1; 0 where none is known."""

_LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)\s+\d+(?:,.*inlined_at\s+(\d+)\s+(\d+)\s+\d+)?")
_FILE = re.compile(r"\s*\.file\s+(\d+)\s+\"(.*)\"")
_SASS_LOC = re.compile(r"\s*//## File \"(.*)\", line (\d+)$")


def machine_lines(source: str, ptx: str, arch: str) -> tuple[Lines | None, tuple[str, Lines] | None]:
    """The lines of the ``ptx`` that a kernel with this ``source`` became, None where it now becomes another; and its
    machine code as text with the lines of that, None without nvdisasm.

    Raises:
        VortexError: VX4003 and VX4007 without a compiler, VX4005 when one fails.
    """
    with scratch_folder() as scratch:
        compile_with_lines(source, arch, scratch / FILE)
        told = (scratch / FILE).with_suffix(".ptx").read_text(encoding="utf-8")
        said = _disassembled((scratch / FILE).with_suffix(".cubin"))
    return ptx_lines(ptx, told), sass_lines(said) if said else None


def _disassembled(cubin: Path) -> str:
    tool = find_inspector("nvdisasm")
    said = output([str(tool), "-gi", "-c", str(cubin)]) if tool else ""
    return said if ".text." in said else ""


def ptx_lines(ptx: str, told: str) -> Lines | None:
    """The lines of ``ptx``, from the same with line tables; None where it is not the same."""
    numbered = list(_located(told))
    found, at = [], 0
    for line in ptx.splitlines():
        if not line.strip():
            found.append(0)
            continue
        if at == len(numbered) or numbered[at][0] != line:
            return None
        found.append(numbered[at][1])
        at += 1
    return tuple(found)


def _located(told: str) -> Iterator[tuple[str, int]]:
    """The lines of PTX that are not about lines, each with its line of C++."""
    files = {m[1] for line in told.splitlines() if (m := _FILE.match(line)) and PurePath(m[2]).name == FILE}
    here = 0
    for line in told.splitlines():
        if m := _LOC.match(line):
            # of a function that was inlined, where that was
            file, number = (m[3], m[4]) if m[3] else (m[1], m[2])
            here = int(number) if file in files else 0
        elif line.strip() and not _FILE.match(line):
            if line.startswith("}"):
                here = 0
            instruction = not line.startswith(("$", ".", "{", "}")) and not line.lstrip().startswith(".")
            yield line, here if instruction else 0


def sass_lines(said: str) -> tuple[str, Lines]:
    """What nvdisasm says without what it says of lines, and those; of inlined functions where they were inlined."""
    code, lines, here = [], [], 0
    for line in said.splitlines():
        if line.lstrip().startswith("//## "):
            m = _SASS_LOC.match(line)
            here = int(m[2]) if m and PurePath(m[1]).name == FILE else 0
            continue
        code.append(line)
        lines.append(here if line.lstrip().startswith("/*") else 0)
    return "\n".join([*code, ""]), tuple(lines)

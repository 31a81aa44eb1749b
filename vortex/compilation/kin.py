"""Which ops, and so which lines of the flow, each line of a kernel's texts belongs to.

TensorIR and CUDA C++ say it in comments (:mod:`vortex.ir.op_labels`), which stay with what is edited by hand. Of PTX
and machine code nvcc and nvdisasm tell the lines of CUDA C++. What belongs to no op, such as finding pages, names none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vortex.compilation.stored import Stored, StoredKernel
from vortex.errors import Loc, VortexError
from vortex.ir.core import Op
from vortex.ir.op_labels import labels_of_tir, values_named
from vortex.targets.target import TARGETS


@dataclass(frozen=True, slots=True)
class Lines:
    """A text of a kernel, and for each of its lines the names of the values that it computes."""

    text: str
    values: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Kin:
    """What belongs together in one kernel."""

    ops: Mapping[str, Op]
    """The ops of its page IR by the names of their values; each has its line of the flow as ``loc``."""
    texts: Mapping[str, Lines]
    """By ``tir``, ``source``, ``ptx`` and ``sass`` those that are there."""
    unknown: Mapping[str, str]
    """Why the lines of a text are not known, by its name."""

    def loc(self, value: str) -> Loc | None:
        """The line of the flow that a value comes from."""
        return self.ops[value].loc


def kin(stored: Stored, kernel: StoredKernel, *, machine: bool = True) -> Kin:
    """The kin of a kernel's lines.

    With ``machine``, PTX and machine code too: nvcc compiles the kernel once more, in about three seconds. Where that
    cannot be, :attr:`Kin.unknown` says why and nothing is raised.
    """
    program = stored.programs[kernel.target]
    f = program.functions[str(kernel.schedule.get("variant_of", kernel.name))]
    ops = {o.value.name: o for o in f.ops if o.result is not None}

    def known(lines: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(v for v in values_named(line) if v in ops) for line in lines)

    texts: dict[str, Lines] = {}
    if tir := kernel.texts.get("tir"):
        texts["tir"] = Lines(tir, known([f"# {said}" for said in labels_of_tir(tir)]))
    if source := kernel.texts.get("source"):
        texts["source"] = Lines(source, known(source.splitlines()))
    unknown = _machine(kernel, texts) if machine and source else {}
    return Kin(ops, texts, unknown)


def _machine(kernel: StoredKernel, texts: dict[str, Lines]) -> dict[str, str]:
    """Add the lines of PTX and machine code; why those that are missing are not known."""
    from vortex.codegen.build.cuda_lines import machine_lines

    source, ptx = texts["source"], kernel.texts.get("ptx", "")
    try:
        of_ptx, of_sass = machine_lines(source.text, ptx, TARGETS[kernel.target].arch)
    except VortexError as e:
        return dict.fromkeys(("ptx", "sass"), e.message)
    values, unknown = ((), *source.values), {}
    if of_ptx is None:
        unknown["ptx"] = "nvcc now makes other PTX of the CUDA C++"
    else:
        texts["ptx"] = Lines(ptx, tuple(values[n] for n in of_ptx))
    if of_sass is None:
        unknown["sass"] = "nvdisasm was not found: pip install nvidia-cuda-nvdisasm"
    else:
        sass, lines = of_sass
        texts["sass"] = Lines(sass, tuple(values[n] for n in lines))
    return unknown

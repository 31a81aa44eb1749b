"""From a scheduled page program to TensorIR: one template per kernel kind, one function per kernel."""

from __future__ import annotations

from dataclasses import dataclass, field

from vortex.codegen.templates import Template, template_for
from vortex.errors import NO_COMPILER, TIR_INVALID
from vortex.ir import digest
from vortex.ir.core import Attr, Function, Module
from vortex.ir.op_labels import ORIGIN
from vortex.kinds.kind import KINDS
from vortex.schedules.check import check_program, described
from vortex.schedules.variants import variants_of
from vortex.targets.target import TARGETS, Target


@dataclass(frozen=True)
class KernelSource:
    """A kernel as TensorIR text, and what the manifest says of it."""

    name: str
    kind: str
    symbol: str
    text: str
    args: tuple[str, ...]
    """Names of the calling convention (docs/architecture.md), in order."""
    page_words: int
    row_words: int
    schedule: dict[str, Attr]
    digest: str
    written: tuple[object, str] | None = field(default=None, repr=False, compare=False)
    """TVM's function, and the text that was written from it; None where the text was read."""

    @property
    def function(self) -> object:
        """TVM's function that the text was written from; None where the text was read, or edited since."""
        return self.written[0] if self.written is not None and self.written[1] == self.text else None


def emit_program(program: Module, target: str = "cpu") -> dict[str, KernelSource]:
    """Every kernel of ``program`` as TensorIR text for the named target, in launch order.

    Raises:
        VortexError: as :func:`vortex.schedules.check.check_program`; VX4003 without TVM, VX4006 when a kernel
            holds what no template can emit.
    """
    check_program(program, TARGETS[target])
    every = [v for f in program.functions.values() for v in variants_of(f)]
    return {f.name: emit_kernel(program, f, TARGETS[target]) for f in every}


def emit_kernel(program: Module, f: Function, target: Target) -> KernelSource:
    """One kernel of ``program`` as TensorIR text, and TVM's function, which :func:`parse_tir` makes of the text too;
    raises as :func:`emit_program`.
    """
    try:
        from tvm.script.ir_builder import IRBuilder

        from vortex.codegen.emitting import annotated
        from vortex.codegen.tir import T
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    template = template_for(target, f)
    schedule = described(program, f, target)
    symbol = f"{program.name}_{f.name}"
    with IRBuilder() as builder, T.prim_func(s_tir=target.kind == "cpu"):
        T.func_name(symbol)
        args = template.emit_into(program, f)
    function = builder.get()
    text = _with_origin(f, template, annotated(function))
    return KernelSource(
        f.name,
        str(f.attrs["kind"]),
        symbol,
        text,
        tuple(args),
        *template.words_of(program, f),
        schedule,
        digest.structural_of(f),
        (function, text),
    )


def _with_origin(f: Function, template: Template, text: str) -> str:
    """The text, which says in its first line where it comes from if that is no line of the flow."""
    if any(o.name.startswith("flow.") for o in f.ops):
        return text
    kind = KINDS[str(f.attrs["kind"])]
    told = f"{ORIGIN}{kind.about}; the same for every flow of this shape, by template {template.name}"
    return f"# {told}\n{text}"


def parse_tir(text: str, name: str) -> object:
    """The TVM function that TensorIR text describes: what is compiled is what the dump shows.

    Raises:
        VortexError: VX4004 when TVM does not accept the text.
    """
    import tvm

    try:
        return tvm.script.from_source(text)
    except Exception as error:  # TVM's parser raises what it likes
        why = str(error).strip() or type(error).__name__
        raise TIR_INVALID.at(why=f"{name}: {why[-1500:]}") from error

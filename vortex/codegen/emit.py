"""From a scheduled page program to TensorIR: one template per kernel kind, one function per kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.errors import NO_COMPILER, NOT_EMITTABLE, TIR_INVALID
from vortex.ir import digest
from vortex.ir.core import Attr, Function, Module


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


def emit_program(program: Module, target: str = "cpu") -> dict[str, KernelSource]:
    """Every kernel of ``program`` as TensorIR text, in launch order.

    Raises:
        VortexError: VX4003 without TVM, VX4006 when a kernel holds what no template can emit.
    """
    return {f.name: _emit(program, f) for f in program.functions.values()}


def _emit(program: Module, f: Function) -> KernelSource:
    try:
        from tvm.script.ir_builder import IRBuilder

        from vortex.codegen.tir import T
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    template = _template(str(f.attrs["kind"]))
    symbol = f"{program.name}_{f.name}"
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        args = template(program, f)
    return KernelSource(
        f.name,
        str(f.attrs["kind"]),
        symbol,
        str(builder.get().script()),
        tuple(args),
        int(f.attrs.get("page_words", 0)),
        int(f.attrs.get("row_words", 0)),
        dict(f.attrs.get("schedule", {})),
        digest.structural_of(f),
    )


def _template(kind: str) -> Callable[[Module, Function], list[str]]:
    from vortex.codegen.cpu.append import emit_append
    from vortex.codegen.cpu.attend import emit_attend
    from vortex.codegen.cpu.plan import emit_plan
    from vortex.codegen.cpu.select import emit_select

    templates = {"plan": emit_plan, "append": emit_append, "select": emit_select, "attend": emit_attend}
    if kind not in templates:
        raise NOT_EMITTABLE.at(
            why=f"no template for kernels of kind '{kind}'", hint=f"there are {', '.join(templates)}"
        )
    return templates[kind]


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

"""Which line of TensorIR each line of CUDA C++ comes from.

TVM's parser gives statements the lines of the text that they were read from, and its passes hand them on. After the
last pass, when nothing looks at the statements any more but what writes them out, a mark with its line goes in front of
each, and the marks are taken out of the text again: the C++ is what it would be without them.
"""

from __future__ import annotations

import re
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx import compilation_pipeline

PIPELINE = "vortex"
"""TVM's pipeline for TensorIR with what this file adds to its end."""
MARK = "vortex_tir_line"
_MARKED = re.compile(rf"\s*{MARK}\((\d+)\);")


def cuda_with_lines(text: str) -> tuple[str, tuple[int, ...]]:
    """The C++ without marks, and for each of its lines that of the TensorIR, from 1; 0 where none is known."""
    code: list[str] = []
    lines: list[int] = []
    here = 0
    for line in text.splitlines():
        if mark := _MARKED.fullmatch(line):
            here = int(mark[1])
            continue
        if line.lstrip().startswith("}"):
            here = 0
        code.append(line)
        lines.append(here)
    return "\n".join([*code, ""]), tuple(lines)


def _pipeline() -> tuple[Any, Any, Any]:
    passes, of_host, of_device = compilation_pipeline.get_tir_pipeline("tirx")
    mark = tvm.transform.module_pass(_mark, opt_level=0, name="vortex.MarkLines")
    return passes, of_host, lambda: tvm.ir.transform.Sequential([of_device(), mark])


def _mark(mod: tvm.IRModule, _: object) -> tvm.IRModule:
    return tvm.IRModule({name: f.with_body(_marked(f.body)) for name, f in mod.functions.items()}, attrs=mod.attrs)


def _marked(body: Any) -> Any:
    statements = (
        tirx.AllocBuffer,
        tirx.Bind,
        tirx.BufferStore,
        tirx.DeclBuffer,
        tirx.Evaluate,
        tirx.For,
        tirx.IfThenElse,
        tirx.While,
    )
    return tvm_ffi.structural_map(body, (statements, lambda s: tirx.SeqStmt([_mark_before(s), s])))


def _mark_before(s: Any) -> Any:
    return tirx.Evaluate(tirx.call_extern("int32", MARK, _line(s.span)))


def _line(span: Any) -> int:
    """The line of a span; of several in one, as passes make it of joined statements, the last that has one."""
    if span is None:
        return 0
    if isinstance(span, tvm.ir.base.SequentialSpan):
        return next((line for part in reversed(list(span.spans)) if (line := _line(part))), 0)
    return int(span.line)


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)

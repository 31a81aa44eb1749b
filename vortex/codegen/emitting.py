"""Telling, while TensorIR is built, which ops the statements compute; TVM's source spans carry it to the text.

Importing this imports TVM (seconds), so import it late.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any

from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder

from vortex.ir.core import Op, Value
from vortex.ir.op_labels import computed_with, label, read_through


@contextmanager
def emitting(*ops: Op | None) -> Iterator[None]:
    """What is built inside belongs to ``ops`` alone; of several around each other the innermost holds."""
    said = label(o for o in ops if o is not None)
    if not said:
        yield
        return
    with IRBuilder.current().with_source_span(ir.Span(ir.SourceName(said), 1, 1, 1, 1)):
        yield


def computing(o: Op) -> AbstractContextManager[None]:
    """What is built inside computes ``o``, and on its way what is kept nowhere."""
    return emitting(*computed_with(o))


def reading(v: Value) -> AbstractContextManager[None]:
    """What is built inside reads ``v`` where it is kept, or computes it."""
    ops: list[Op | None] = [*read_through(v)]
    return emitting(*ops or [v.owner])


def annotated(function: tirx.PrimFunc) -> str:
    """The function as text, with a comment where other ops begin."""
    notes: dict[Any, str] = {}
    _note(function.body, "", notes)
    # TVM puts the comment of a block above it
    return re.sub(r"^ *(# %.*)\n(.*)$", r"\2  \1", str(function.script(obj_to_annotate=notes)), flags=re.M)


def _note(s: Any, outer: str, notes: dict[Any, str]) -> None:
    """Find the statements that need a comment, in a block whose comment is ``outer``."""
    if s is None:
        return
    if isinstance(s, tirx.SeqStmt):
        for each, following in pairwise([*s.seq, None]):
            if not _declared_by(each, following):
                _note(each, outer, notes)
        return
    said = _said(s.span)
    if said and said != outer:
        notes[s] = said
    for part in ("body", "then_case", "else_case"):
        _note(getattr(s, part, None), said or outer, notes)


def _declared_by(s: Any, following: Any) -> bool:
    """Whether ``following`` may be printed on one line with ``s``, which can have a single comment."""
    stores = isinstance(s, tirx.AllocBuffer) and isinstance(following, tirx.BufferStore)
    return stores and s.buffer.scope() == "local" and following.buffer.same_as(s.buffer)


def _said(span: Any) -> str:
    if isinstance(span, ir.base.SequentialSpan):
        span = span.spans[-1]
    return str(span.source_name.name) if span is not None else ""

"""What a launch of ``select`` on a GPU takes in: the work of ``append``, in steps that add one token to a request.

    kernel @select() {kind = "select", domain = "rows", takes_in = "append", ..} {

    launches    append |----|                           select |items of rows ........|
                select        |items of rows ........|                |new tokens|

A launch that waits for another costs a layer 2 to 4 us. It need not wait here: what ``append`` changes in such a step
is each request's last page, and a budget reserves that page (``recent`` is at least 1), so that ``select`` reads
nothing of it. State is another matter: it begins anew in ``append``, and ``select`` reads it.

``schedule`` decides and writes ``takes_in`` into the IR, where everybody else reads it.
"""

from __future__ import annotations

from vortex.ir.core import Function, Module
from vortex.ir.dialects import page


def takes_in_tokens(program: Module) -> bool:
    """Whether a layer's decode step has no launch of ``append``."""
    return any(taken_in(program, f) is not None for f in program.functions.values())


def taken_in(program: Module, f: Function) -> Function | None:
    """The kernel whose work launches of ``f`` take in, as the program says; None where they take in nothing."""
    name = f.attrs.get("takes_in")
    return None if name is None else program.functions[name]


def to_take_in(program: Module, f: Function) -> Function | None:
    """The kernel of kind ``append`` whose work launches of a ``select`` can take in; None where there is none."""
    selects, appends = ([g for g in program.functions.values() if g.attrs["kind"] == k] for k in ("select", "append"))
    if len(appends) != 1 or f.name not in [g.name for g in selects[:1]]:
        return None
    return None if any(isinstance(o, page.Reset) for o in appends[0].ops) else appends[0]

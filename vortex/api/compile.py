"""``vortex.compile``: a flow, compiled from Python as the command line compiles it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from vortex.driver import Compilation, compile_flow
from vortex.errors import BAD_ARGUMENT, BAD_OPTION
from vortex.flow.flow import check_class, vFlow
from vortex.passes.manager import PassCall
from vortex.spec import Spec
from vortex.targets.target import STAGES, Target, find_targets
from vortex.tune.choose import VARIANTS, chooser

log = logging.getLogger("vortex")


def compile(
    flow: str | Path | vFlow | type[vFlow],
    out: str | Path | None = None,
    *,
    spec: Spec | None = None,
    targets: str | Target | Iterable[str | Target] = "cpu",
    passes: str | Sequence[PassCall] | None = None,
    to: str = "lib",
    dump: str | Path | None = None,
    db: str | Path | Literal[False] | None = None,
    shape: str | None = None,
    variants: int = VARIANTS,
) -> Compilation:
    """Compile ``flow`` into an artifact, or any part of the way; schedules come from the tuning databases, as they do
    for ``vortex compile``.

    Args:
        flow: the name of a flow that comes with vortex, ``file.py`` with one flow in it, ``file.py:name``, or a class
            or object of your own.
        out: the artifact's folder; ``NAME.vxa`` in the working directory unless given.
        spec: the model's shape: page size, head dim, query heads to a KV head, types.
        targets: what to compile for: a name (``cpu``, ``sm_90a``, ``sm_100a``; ``sm_90`` and ``sm_100`` stand for the
            latter), several names with commas between them, or a list of names or of
            :class:`~vortex.targets.target.Target`.
        passes: a pipeline that replaces the default, as ``vortex compile --passes`` takes it.
        to: the last stage: ``flow``, ``page``, ``tir``, ``src`` or ``lib``. Before ``lib`` no artifact is written.
        dump: a folder for the text of every step; ``"auto"`` is ``dumps/NAME-HASH-TARGETS``, with ``-page`` and so on
            where ``to`` is an earlier stage than ``lib``. Nothing is written unless given.
        db: the tuning database in place of the user's; False looks nothing up.
        shape: compile for one shape, ``"batch=8,kv_heads=8,tokens=32768,kept=30"``, instead of for all that were
            measured.
        variants: the most kernels that stand for one at different shapes.

    Returns:
        What was made, as far as it went: :class:`~vortex.driver.Compilation`.

    Raises:
        VortexError: VX1xxx at the flow's line, VX4001 for an unknown target, VX4002 for a stage that a target does not
            reach, VX4003 without a compiler, VX4007 without nvcc, VX6002 and VX7001 for a wrong argument, VX8007 for a
            shape that is none; ``out`` is as it was then.
    """
    if not isinstance(flow, str | Path):
        check_class(flow if isinstance(flow, type) else type(flow))
    if spec is not None and not isinstance(spec, Spec):
        raise BAD_ARGUMENT.at(what="spec", why=f"is {type(spec).__name__}; a vortex.Spec is needed")
    if to not in STAGES:
        raise BAD_OPTION.at(option="to", why=f"is {to!r}", hint=f"one of {', '.join(STAGES)}")
    if isinstance(variants, bool) or not isinstance(variants, int) or variants < 1:
        raise BAD_OPTION.at(option="variants", why=f"is {variants!r}", hint="1 for one kernel that serves all shapes")
    if db is False and shape is not None:
        raise BAD_OPTION.at(option="shape", why="chooses among tuning results, and db=False uses none", hint="drop one")
    return compile_flow(
        str(flow) if isinstance(flow, Path) else flow,
        spec=spec,
        targets=_targets(targets),
        passes=passes,
        to=to,
        out=out,
        dump="auto" if dump == "auto" else dump if dump is None else Path(dump),
        choose=None if db is False else chooser(None if db is None else Path(db), shape, variants),
    )


def _targets(given: str | Target | Iterable[str | Target]) -> tuple[Target, ...]:
    """The targets, each once."""
    if not isinstance(given, str | Target | Iterable):
        raise BAD_ARGUMENT.at(what="targets", why=f"is {type(given).__name__}; names of targets are needed")
    listed = [given] if isinstance(given, str | Target) else list(given)
    names = [name for x in listed for name in (x.split(",") if isinstance(x, str) else [x])]
    found = find_targets(names, log.info)
    if not found:
        raise BAD_OPTION.at(option="targets", why="names no target", hint='e.g. targets=["cpu", "sm_90a"]')
    return found

"""The ring of tiles in shared memory: while one tile is computed on, the copies of the next ones are on their way."""

from __future__ import annotations

from collections.abc import Callable

from vortex.codegen.cuda.ptx import ptx, registers
from vortex.codegen.tir import I32, Expr, T, equal, i32, let, put, when


def run_ring(
    stages: int,
    tiles: Expr,
    *,
    copy: Callable[[Expr, Expr], None],
    use: Callable[[Expr], None],
    sync: Callable[[], None],
    begun: Callable[[], None] = lambda: None,
) -> None:
    """Call ``use(stage)`` for tiles ``0 .. tiles - 1`` in turn; at least ``stages - 1`` copies run ahead of it.

        stages = 3    stage 0   stage 1   stage 2
        turn 0        use 0     copy 1    copy 2
        turn 1        copy 3    use 1     copy 2
        turn 2        copy 3    copy 4    use 2

    ``copy(tile, stage)`` starts the asynchronous copies of a tile; all of one turn are one commit group, so that
    waiting for all groups but the last ``stages - 2`` is waiting for the tile of this turn. ``sync`` is the barrier of
    those who share the ring: a warp, or the CTA. ``begun`` is called while the first copies are on their way.
    """
    ahead = stages - 1
    for i in range(ahead):
        with when(i32(i) < tiles):
            copy(i32(i), i32(i))
        ptx("cp.async.commit_group")
    begun()
    turn, stage = registers("turn", 1, I32), registers("stage", 1, I32)
    put(turn, i32(0), 0)
    put(stage, i32(0), 0)
    with T.While(turn[0] < tiles):
        ptx("cp.async.wait_group", ahead - 1)
        # every thread's copies are there, and every thread is done with the stage that is filled next
        sync()
        with when(turn[0] + ahead < tiles):
            free = T.Select(equal(stage[0], i32(0)), i32(ahead), stage[0] - 1)
            copy(let("next", turn[0] + ahead), let("free", free))
        ptx("cp.async.commit_group")
        use(let("now", stage[0]))
        put(turn, turn[0] + 1, 0)
        put(stage, T.Select(equal(stage[0], i32(ahead)), i32(0), stage[0] + 1), 0)

"""What forward_indexer ends in: a choice of pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vortex.errors import BAD_SCORE
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import current, fail
from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.types import S


@dataclass(frozen=True, slots=True)
class Selection:
    """The best pages by ``score``: a value of the trace, or the scores of an eager step."""

    score: Any
    value: Value | None = None


def topk(score: Any) -> Selection:
    """Keep the pages with the best scores, as many as the budget leaves.

    Order: +inf, finite numbers, -inf, NaN; ties go to the lower page.

    Raises:
        VortexError: VX1006 when the score is not one number per page.
    """
    tracer = current()
    if tracer is None:
        if not isinstance(score, torch.Tensor) or score.ndim != 1:
            raise fail(BAD_SCORE, got=list(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__)
        return Selection(score)
    if not isinstance(score, vTensor):
        raise fail(BAD_SCORE, got=f"a {type(score).__name__}" if not isinstance(score, torch.Tensor) else "a constant")
    if score.dims != (S,):
        raise fail(BAD_SCORE, got=score.type)
    return Selection(score, _append(score))


def _append(score: vTensor) -> Value:
    from vortex.flow import source

    tracer = current()
    assert tracer is not None
    return tracer.function.add(flow.TopK(lift(score).value), "pages", source.here())

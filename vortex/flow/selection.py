"""What forward_indexer ends in: a choice of pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vortex.errors import BAD_SCORE, Loc
from vortex.flow import source
from vortex.flow.shortlist import scored_pages
from vortex.flow.tracer import current, fail


@dataclass(frozen=True, slots=True)
class Selection:
    """The best pages by ``score``: a traced tensor, or the scores of an eager step."""

    score: Any
    loc: Loc | None = None
    """The call of :func:`topk`."""


def topk(score: Any) -> Selection:
    """Keep the pages with the best scores, as many as the budget leaves; what forward_indexer returns counts.

    The score may be of all candidates or of the pages of a shortlist, which are then the ones to choose from.

    Order: +inf, finite numbers, -inf, NaN; ties go to the lower page.

    Raises:
        VortexError: VX1006 when the score is not one number per page.
    """
    if current() is None:
        if not isinstance(score, torch.Tensor) or score.ndim != 1:
            got = list(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
            raise fail(BAD_SCORE, call="topk", got=got)
        return Selection(score, source.here())
    scored_pages(score, "topk")
    return Selection(score, source.here())

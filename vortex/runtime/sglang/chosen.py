"""The budgets that requests have chosen, by their rows of ``req_to_token``, where the device finds them.

A row is written with each pass over its request's prompt, so that nothing is left of whoever had the row before, and
read when a decode step begins: its copy is what the kernels of a captured graph look at.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

import torch

from vortex.budget import Budget
from vortex.errors import VortexError
from vortex.runtime.sglang.choice import Choice, choice_of

logger = logging.getLogger(__name__)

NONE = (-1, 0, 0, 0, 1)
"""The row of a request that has chosen nothing."""


class Chosen:
    """One table for all steps of a backend.

    Attributes:
        rows: i32 ``[slots, 5]``, as ``Decoder.plan`` takes budgets of requests.
        largest: the most that a request may choose.
    """

    def __init__(self, most: Choice, budget: Budget, slots: int, device: torch.device) -> None:
        self._most, self._budget = most, budget
        self.largest = most.budget(budget)
        self.rows = torch.tensor([NONE], dtype=torch.int32, device=device).repeat(slots, 1)

    def budget(self, custom: object) -> Budget | None:
        """What ``custom_params`` of a request chose. Those that are wrong were refused where they arrived; one that
        came another way has the engine's budget, for nothing may stop a batch.
        """
        try:
            made = choice_of(custom, self._most, table=bool(self._budget.table))
        except VortexError as error:
            logger.warning("vortex: a request decodes by the engine's budget: %s", error.message)
            return None
        return None if made is None else made.budget(self._budget)

    def write(self, requests: torch.Tensor, custom: Sequence[object]) -> None:
        """What the requests in these rows i64 ``[B]`` chose; nobody waits for the device."""
        found = [self.budget(x) for x in custom]
        numbers = [NONE if b is None else b.numbers() for b in found]
        new = torch.tensor(numbers, dtype=torch.int32, pin_memory=self.rows.is_cuda)
        self.rows.index_copy_(0, requests, new.to(self.rows.device, non_blocking=True))


@lru_cache(4096)
def budget_of(row: tuple[int, ...]) -> Budget | None:
    """The budget that a row says, None for the engine's."""
    pages, sink, recent, numerator, denominator = row
    return None if pages < 0 else Budget(pages, f"{numerator}/{denominator}", sink, recent)

"""How much of a flow a check runs: fewer pages where each is so large that the usual ones would take minutes.

numbers of a page        1 million                 64 thousand and less
costs                    of 128 pages              of as many tokens as were asked for
compared                 requests of 16 pages      requests of 5, 200 and 900 tokens
"""

from __future__ import annotations

from vortex.ir.core import Module
from vortex.ir.staging import over_pages
from vortex.ir.types import TensorType
from vortex.spec import Spec

LENGTHS = (5, 200, 900)
"""Tokens of the requests that are compared with the eager flow."""
COUNTED, COMPARED = 3 << 26, 1 << 24
"""Numbers that the interpreter may go through for the costs of a row, and that requests that are compared may have."""
FEW = 16
"""Pages of which some are left out by any budget that a check has."""
MOST = 1 << 22
"""Numbers of a page from which on nothing is run at all."""


def page_numbers(module: Module) -> int:
    """Numbers that a flow (flow IR) reads, computes or stores of one page, or block."""
    total = 0
    for f in module.functions.values():
        whole = f.name == "cache"
        for v in (*f.args, *(o.result for o in f.ops if o.result is not None)):
            if isinstance(v.type, TensorType) and (whole or over_pages(v)):
                total += v.type.numel
    return max(1, total)


def why_fewer(module: Module) -> str:
    """What a check says where it runs less than it was asked for."""
    return f"the flow has {page_numbers(module)} numbers of each page"


def counted_tokens(module: Module, spec: Spec, tokens: int) -> int:
    """Tokens of the row that costs are counted of: ``tokens`` if that is possible; 0 where a page is too large."""
    if (each := page_numbers(module)) > MOST:
        return 0
    return min(tokens, spec.block_size * max(FEW, COUNTED // each))


def compared_lengths(module: Module, spec: Spec) -> tuple[int, ...]:
    """Tokens of the requests that are compared; none where a page is too large."""
    if (each := page_numbers(module)) > MOST:
        return ()
    longest = spec.block_size * max(FEW, COMPARED // each)
    return tuple(min(n, longest) for n in LENGTHS)

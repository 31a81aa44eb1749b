"""Words as kernels lay them out, in shared memory and in scratch."""

from __future__ import annotations


def aligned(words: int) -> int:
    """32-bit words up to the next boundary of 16 bytes, on which everything begins."""
    return -(-words // 4) * 4

"""Which of a library's kernels run in a step: of the variants of a kernel, the one for shapes most like the step's.

A choice depends on nothing but what the host knows and a captured graph keeps: rows, columns of the page table, pages
kept. It is made once for each size of step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vortex.artifact.manifest import KernelEntry
from vortex.kinds.buckets import bucket_of, serving


@dataclass(frozen=True, slots=True)
class Variants:
    """The kernels of a library, those together of which a step runs one; the first of them where none is near."""

    groups: tuple[tuple[KernelEntry, ...], ...]

    @classmethod
    def of(cls, kernels: Sequence[KernelEntry], *, choose: bool = True) -> Variants:
        """Grouped by what they are variants of, in launch order; without ``choose`` the first of each group alone."""
        found: dict[str, list[KernelEntry]] = {}
        for k in kernels:
            found.setdefault(k.variant_of, []).append(k)
        groups = [tuple(sorted(group, key=lambda k: k.variant_of != k.name)) for group in found.values()]
        return cls(tuple(groups if choose else (group[:1] for group in groups)))

    def pick(self, rows: int, columns: int, kept: int) -> tuple[KernelEntry, ...]:
        """One kernel of each group, for ``rows`` requests times KV heads, a page table of ``columns`` columns and
        selections of ``kept`` pages.
        """
        return tuple(
            serving(bucket_of(group[0].kind, rows, columns, kept), [(k, k.serves) for k in group])
            for group in self.groups
        )

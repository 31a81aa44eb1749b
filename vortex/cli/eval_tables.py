"""What ``vortex eval`` prints: the tables of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vortex.cli.show import table

if TYPE_CHECKING:
    from vortex.evaluate.statistics import Summary


def print_tables(summary: Summary) -> None:
    """Print all tables, each with its note."""
    from vortex.evaluate.tables import tables

    for n, t in enumerate(tables(summary)):
        if n:
            print()
        table(t.head, t.rows, t.title)
        if t.note:
            print(t.note)

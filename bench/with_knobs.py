"""A scheduled .page file with other knobs for one kernel, which then has no variants: it runs in steps of every size.

python bench/with_knobs.py quest.page select threads=128,residents=4 > edited.page
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module

TUNED = ("variants", "serves", "from")
"""What a schedule says of the knobs that tuning chose."""


def with_knobs(module: Module, kernel: str, knobs: dict[str, int]) -> Module:
    """``module``, with ``knobs`` in the schedule of ``kernel``."""
    f = module.functions[kernel]
    kept = {name: value for name, value in f.attrs["schedule"].items() if name not in TUNED}
    f.attrs["schedule"] = {**kept, **knobs, "from": "user"}
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("kernel")
    parser.add_argument("knobs")
    args = parser.parse_args()
    knobs = {name: int(value) for name, value in (k.split("=") for k in args.knobs.split(","))}
    print(print_module(with_knobs(parse_module(args.page.read_text(), str(args.page)), args.kernel, knobs)), end="")


if __name__ == "__main__":
    main()

"""Page programs with knobs of one kernel given by hand; the defaults of the others are chosen around them.

python bench/scheduled.py select threads=128,residents=4    # the pipeline for `vortex compile --passes`
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from vortex.driver import compile_flow
from vortex.ir.core import Module
from vortex.passes.manager import DEFAULT_PIPELINE, PassCall, parse_pipeline
from vortex.spec import Spec
from vortex.targets.target import Target


def pipeline(kind: str, knobs: Mapping[str, int]) -> list[PassCall]:
    """The default passes, the last of which is given ``knobs`` of kernels of ``kind``."""
    *calls, last = parse_pipeline(f"{DEFAULT_PIPELINE['flow']},{DEFAULT_PIPELINE['page']}")
    assert last.name == "schedule"
    given = "+".join(f"{kind}.{name}:{value}" for name, value in knobs.items())
    return [*calls, PassCall(last.name, {"knobs": given} if given else {})]


def program(flow: str, spec: Spec, target: Target, kind: str, knobs: Mapping[str, int]) -> Module:
    """Page IR of ``flow``; VX2010 for knobs that are not legal together."""
    made = compile_flow(flow, spec=spec, targets=[target], passes=pipeline(kind, knobs), to="page")
    return made.programs[target.name]


def knobs_of(text: str) -> dict[str, int]:
    """``threads=128,residents=4`` as knobs."""
    return {name: int(value) for name, value in (k.split("=") for k in text.split(","))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind")
    parser.add_argument("knobs", type=knobs_of)
    args = parser.parse_args()
    print(",".join(map(str, pipeline(args.kind, args.knobs))))


if __name__ == "__main__":
    main()

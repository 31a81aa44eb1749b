"""Compile a flow into an artifact, or any part of the way.

FLOW is the name of a shipped flow, file.py (with one flow in it) or file.py:name, written for vortex or for
vortex_torch (docs/compat.md); with --from, a file or folder that an earlier compilation dumped, edited or not.

examples:
  vortex compile quest --target cpu -o quest.vxa
  vortex compile my_flow.py:mine --heads 32/8 --head-dim 128 --page-size 16 --dtype bf16
  vortex compile their_flow.py:theirs --page-size 32
  vortex compile latent_topk --heads 20 --latent 512+64 --page-size 32
  vortex compile quest --to page --print-after fuse
  vortex compile quest --target sm_100 --to page
  vortex compile --from page dumps/quest-1a2b3c4d/12-plan-memory.page -o quest.vxa
  vortex compile --from tir dumps/quest-1a2b3c4d -o quest.vxa
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.flow_options import SPEC, add_spec, spec_of
from vortex.cli.opt import check_print_after
from vortex.cli.show import emit_json, say, write_text
from vortex.errors import BAD_OPTION
from vortex.targets.target import STAGES, parse_targets

if TYPE_CHECKING:
    from vortex.driver import Compilation
    from vortex.ir.core import Module
    from vortex.passes.manager import Choose

START = ("flow", "page", "tir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "flow", metavar="FLOW", help="name, file.py or file.py:name; a dumped file or folder with --from"
    )
    parser.add_argument("--target", metavar="NAMES", help="e.g. cpu,sm_90 (default: cpu, or what the file says)")
    add_spec(parser)
    parser.add_argument("--passes", metavar="TEXT", help="run this pipeline instead of the default")
    parser.add_argument("--from", dest="start", metavar="STAGE", choices=START, help=f"resume from {', '.join(START)}")
    parser.add_argument(
        "--to", metavar="STAGE", choices=STAGES, default="lib", help=f"stop at one of {', '.join(STAGES)}"
    )
    parser.add_argument("--print-after", metavar="PASS", help="print the IR after this pass, or all, to stderr")
    parser.add_argument("--dump-dir", metavar="DIR", type=Path, help="where dumps go (default: dumps/NAME-HASH)")
    parser.add_argument("--no-dump", action="store_true", help="write no dumps")
    parser.add_argument("--db", metavar="PATH", type=Path, help="tuning database (default: the user's, see vortex db)")
    parser.add_argument("--no-db", action="store_true", help="use no tuning results")
    parser.add_argument(
        "--shape", metavar="SHAPE", help="tuned for batch=..,kv_heads=..,tokens=..,kept=.. (default: all that were)"
    )
    parser.add_argument(
        "--variants", metavar="N", type=int, default=4, help="of a kernel, for different shapes (default: at most 4)"
    )
    parser.add_argument("--time", action="store_true", help="print how long each stage took, to stderr")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    parser.add_argument(
        "-o", dest="out", metavar="PATH", type=Path, help="the artifact (default: NAME.vxa), or the text file"
    )


def run(args: argparse.Namespace) -> int:
    """Compile."""
    from vortex.compilation.lowered import Lowered
    from vortex.compilation.resume import dumped_targets, read_ir, read_tir
    from vortex.driver import compile_flow
    from vortex.passes.manager import parse_pipeline

    if args.no_dump and args.dump_dir:
        raise BAD_OPTION.at(option="--no-dump", why="contradicts --dump-dir", hint="give one of them")
    passes = None if args.passes is None else parse_pipeline(args.passes)
    start = args.start or _stage_of(args.flow)
    if start and (given := [o for o in SPEC if getattr(args, o) is not None]):
        option = f"--{given[0].replace('_', '-')}"
        raise BAD_OPTION.at(option=option, why=f"is fixed by the {start} file that is resumed", hint="drop it")
    source: str | Module | list[Lowered] = args.flow
    default = "cpu"
    if start in ("flow", "page"):
        source = read_ir(args.flow, start)
        default = str(source.attrs.get("target", default))
    elif start == "tir":
        default = ",".join(dumped_targets(Path(args.flow)))
    targets = parse_targets(args.target or default, say)
    for target in targets:
        target.require(args.to)
    if start == "tir":
        source = read_tir(Path(args.flow), targets)
    printed: list[str] = []

    def on_step(name: str, target: str, before: str, text: str) -> None:
        short = name.partition("{")[0]
        if args.print_after in ("all", short):
            note = "" if text != before else ", unchanged"
            print(f"// ---- after {name}{f' for {target}' if target else ''}{note}\n{text}", end="", file=sys.stderr)
        printed.append(short)

    made = compile_flow(
        source,
        spec=None if start else spec_of(args),
        targets=targets,
        passes=passes,
        to=args.to,
        out=args.out,
        dump=None if args.no_dump else args.dump_dir or "auto",
        argv=["vortex", "compile", *args.argv],
        on_step=on_step,
        choose=_chooser(args),
    )
    check_print_after(args.print_after, printed)
    if args.to != "lib":
        _write_text(_text(made), args.out)
    _report(made, args)
    return 0


def _chooser(args: argparse.Namespace) -> Choose | None:
    """What the tuning databases are asked through; None for not at all."""
    if args.no_db:
        if args.db or args.shape:
            option = "--db" if args.db else "--shape"
            raise BAD_OPTION.at(option="--no-db", why=f"contradicts {option}", hint="give one of them")
        return None
    from vortex.tune.choose import Chooser
    from vortex.tune.layers import Layers
    from vortex.tune.shapes import read_shape

    if args.variants < 1:
        raise BAD_OPTION.at(
            option="--variants", why=f"is {args.variants}", hint="1 for one kernel that serves all shapes"
        )
    return Chooser(Layers.default(args.db), read_shape(args.shape) if args.shape else None, args.variants)


def _stage_of(name: str) -> str | None:
    """The stage to resume from, told from the name; None for a flow to trace."""
    path = Path(name)
    if path.suffix in (".flow", ".page"):
        return path.suffix[1:]
    return "tir" if path.is_dir() else None


def _text(made: Compilation) -> str:
    """The text of the last stage that was reached."""
    from vortex.ir.printer import print_module

    if made.sources:
        return "".join(made.sources.values())
    if made.lowered:
        return "\n".join(k.text for low in made.lowered for k in low.kernels.values())
    modules = [made.flow] if made.flow else list(made.programs.values())
    return "\n".join(print_module(m) for m in modules)


def _write_text(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
    else:
        write_text(text, out)


def _report(made: Compilation, args: argparse.Namespace) -> None:
    if args.json:
        seconds = {k: round(v, 6) for k, v in made.seconds.items()}
        found = {"artifact": made.artifact, "dumps": made.dumps, "seconds": seconds, "own_seconds": made.own_seconds}
        emit_json(found | {"digest": made.manifest.digest if made.manifest else None})
    if args.time:
        from vortex.driver import TOOLS

        for part, took in made.seconds.items():
            say(f"{took:8.3f} s  {part}{'' if part in TOOLS else '  (own code)'}")
        say(f"{made.own_seconds:8.3f} s  own code in all")
    if made.artifact:
        say(f"wrote {made.artifact}")
    if made.dumps:
        say(f"dumps in {made.dumps}")

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
  vortex compile --from page dumps/quest-1a2b3c4d-cpu/*-fuse.page -o quest.vxa
  vortex compile --from tir dumps/quest-1a2b3c4d-cpu -o quest.vxa
  vortex compile --from src dumps/quest-1a2b3c4d-cpu -o quest.vxa
  vortex compile quest --dump tvm --to src
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli import pass_texts
from vortex.cli.flow_options import SPEC, add_spec, spec_of
from vortex.cli.pass_texts import PassTexts, bisected
from vortex.cli.show import emit_json, say, so_far, write_text
from vortex.errors import BAD_OPTION
from vortex.targets.target import STAGES, parse_targets

if TYPE_CHECKING:
    from vortex.artifact.resumed import Resumed
    from vortex.compilation.lowered import Lowered
    from vortex.driver import Compilation, OnBuilt
    from vortex.ir.core import Module
    from vortex.passes.manager import Choose, PassCall

START = ("flow", "page", "tir", "src")


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
    pass_texts.add_arguments(parser)
    parser.add_argument("--dump-dir", metavar="DIR", type=Path, help="for dumps (default: dumps/NAME-HASH-TARGETS)")
    parser.add_argument(
        "--dump",
        metavar="WHAT",
        choices=("tvm",),
        help="in dumps too: tvm, the texts around those passes of TVM that change them",
    )
    parser.add_argument("--no-dump", action="store_true", help="write no dumps")
    parser.add_argument("--no-source", action="store_true", help="keep no flow's code in the artifact and the dump")
    parser.add_argument("--db", metavar="PATH", type=Path, help="tuning database (default: the user's, see vortex db)")
    parser.add_argument("--no-db", action="store_true", help="use no tuning results")
    parser.add_argument(
        "--shape", metavar="SHAPE", help="tuned for batch=..,kv_heads=..,tokens=..,kept=.. (default: all that were)"
    )
    parser.add_argument(
        "--variants", metavar="N", type=int, help="of a kernel, for different shapes (default: at most 4)"
    )
    parser.add_argument("--time", action="store_true", help="print how long each stage took, to stderr")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    parser.add_argument(
        "-o", dest="out", metavar="PATH", type=Path, help="the artifact (default: NAME.vxa), or the text file"
    )


def run(args: argparse.Namespace) -> int:
    """Compile."""
    from vortex.compilation.resume import dumped_targets, read_ir, read_src, read_tir, resumed_dump, resumed_ir
    from vortex.driver import compile_flow
    from vortex.passes.manager import parse_pipeline

    if args.no_dump and args.dump_dir:
        raise BAD_OPTION.at(option="--no-dump", why="contradicts --dump-dir", hint="give one of them")
    if args.dump and args.no_dump:
        raise BAD_OPTION.at(option="--no-dump", why=f"contradicts --dump={args.dump}", hint="give one of them")
    if args.dump and STAGES.index(args.to) < STAGES.index("src"):
        raise BAD_OPTION.at(option=f"--dump={args.dump}", why=f"TVM's passes run after {args.to}", hint="--to src")
    passes = None if args.passes is None else parse_pipeline(args.passes)
    start = args.start or _stage_of(args.flow)
    if start and (given := [o for o in SPEC if getattr(args, o) is not None]):
        option = f"--{given[0].replace('_', '-')}"
        raise BAD_OPTION.at(option=option, why=f"is fixed by the {start} file that is resumed", hint="drop it")
    if start and STAGES.index(args.to) < STAGES.index(start):
        raise BAD_OPTION.at(option="--to", why=f"{args.to} lies before {start}", hint=f"--to {start}, or further down")
    if args.dump and start == "src":
        raise BAD_OPTION.at(option=f"--dump={args.dump}", why="no pass of TVM runs on src", hint="--from tir")
    if start in ("tir", "src") and passes is not None:
        raise BAD_OPTION.at(option="--passes", why=f"run before {start}, which is resumed", hint="--from page")
    source: str | Module | list[Lowered] = args.flow
    default = "cpu"
    resumed: tuple[Resumed, ...] = ()
    if start in ("flow", "page"):
        source = read_ir(args.flow, start)
        resumed = resumed_ir(args.flow, start)
        default = str(source.attrs.get("target", default))
    elif start:
        default = ",".join(dumped_targets(Path(args.flow)))
    targets = parse_targets(default if args.target is None else args.target, say)
    for target in targets:
        target.require(args.to)
    if start in ("tir", "src"):
        source = (read_tir if start == "tir" else read_src)(Path(args.flow), targets)
        resumed = resumed_dump(Path(args.flow), start, source)
    passes = _bisected(passes, source, args.bisect_limit)
    shown = PassTexts(args)

    def on_step(name: str, target: str, before: str, text: str) -> None:
        shown.ran(name, before, text, f" for {target}" if target else "")

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
        keep_source=not args.no_source,
        on_built=_telling(),
        resumed=resumed,
        dump_tvm=args.dump == "tvm",
    )
    shown.close()
    if args.to != "lib":
        _write_text(_text(made, locs=not args.no_locs), args.out)
    _report(made, args)
    return 0


def _bisected(
    passes: list[PassCall] | None, source: str | Module | list[Lowered], limit: int | None
) -> list[PassCall] | None:
    """The pipeline that ``--bisect-limit`` leaves; the default one is written out for it."""
    if limit is None:
        return passes
    if isinstance(source, list):
        raise BAD_OPTION.at(option="--bisect-limit", why="no pass runs on tir and src", hint="--from flow or page")
    if passes is None:
        from vortex.driver import default_pipeline

        passes = default_pipeline("flow" if isinstance(source, str) else source)
    return bisected(passes, limit)


def _telling() -> OnBuilt:
    """Says at most every two seconds how many kernels are compiled, for nvcc takes seconds for each."""
    began = last = 0.0

    def told(target: str, done: int, total: int) -> None:
        nonlocal began, last
        now = time.monotonic()
        if done == 0:
            began = last = now
        elif done < total and now - last > 2:
            last = now
            say(f"kernels compiled for {target}: {so_far(began, done, total)}")

    return told


def _chooser(args: argparse.Namespace) -> Choose | None:
    """What the tuning databases are asked through; None for not at all."""
    if args.no_db:
        if args.db or args.shape:
            option = "--db" if args.db else "--shape"
            raise BAD_OPTION.at(option="--no-db", why=f"contradicts {option}", hint="give one of them")
        return None
    from vortex.tune.choose import VARIANTS, chooser

    variants = VARIANTS if args.variants is None else args.variants
    if variants < 1:
        raise BAD_OPTION.at(option="--variants", why=f"is {variants}", hint="1 for one kernel that serves all shapes")
    return chooser(args.db, args.shape, variants)


def _stage_of(name: str) -> str | None:
    """The stage to resume from, told from the name; None for a flow to trace. A shipped flow is no folder of that name
    that happens to lie where an engine starts.
    """
    path = Path(name)
    if path.suffix in (".flow", ".page"):
        return path.suffix[1:]
    if not name or not path.is_dir():
        return None
    from vortex.flow.flow import library_names

    return None if name in library_names() else "tir"


def _text(made: Compilation, *, locs: bool) -> str:
    """The text of the last stage that was reached."""
    from vortex.ir.op_labels import uncommented
    from vortex.ir.printer import print_module

    if made.sources or made.lowered:
        kernels = [k.text for low in made.lowered for k in low.kernels.values()]
        text = "".join(made.sources.values()) if made.sources else "\n".join(kernels)
        return text if locs else uncommented(text)
    modules = [made.flow] if made.flow else list(made.programs.values())
    return "\n".join(print_module(m, locs=locs) for m in modules)


def _write_text(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
    else:
        write_text(text, out)


def _warn(made: Compilation) -> None:
    """Say what kernels spill, and which CTAs have no room on an SM."""
    from vortex.remarks.kernels import warnings

    for target, entry in made.manifest.targets.items() if made.manifest is not None else ():
        for k in entry.kernels:
            for r in warnings(k.name, k.schedule, k.resources):
                say(f"warning[{r.rule}]: on {target}, {r.message}; 'vortex explain {made.artifact}' tells more")


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
        _warn(made)
    if made.dumps:
        say(f"dumps in {made.dumps}")

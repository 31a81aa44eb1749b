"""The database of tuning results: look, share, merge, mend.

examples:
  vortex db ls select --target sm_90
  vortex db best --layer user
  vortex db merge results.jsonl
  vortex db explain quest --target sm_90 --shape batch=8,kv_heads=8,tokens=32768,kept=30
  vortex db export --target sm_90 -o h200.jsonl
  vortex db pull https://example.org/h200.jsonl#sha256=9f2c...
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortex.cli.exit_codes import CHECK_FAILED, OK
from vortex.cli.flow_options import add_spec, flow_program
from vortex.cli.numbers import bounded
from vortex.cli.show import emit_json, listing, say
from vortex.errors import BAD_OPTION, NOT_DATABASE, UNKNOWN_NAME, UNKNOWN_RECORD, counted, nearest_or_all
from vortex.targets.target import parse_targets

if TYPE_CHECKING:
    from vortex.kinds.buckets import Bucket
    from vortex.tune.explain import Explanation
    from vortex.tune.layers import Layers
    from vortex.tune.record import Record
    from vortex.tune.store import Store

LAYERS = ("user", "project", "shipped")
"""Those of :class:`vortex.tune.layers.Layers`, in the order in which they are asked and shown."""
ID = 12
"""Digits of an id that tables show."""
SHOWN = {"id": lambda x: x[:ID], "ir": lambda x: x[:ID], "us": lambda x: f"{x:.2f}"}
"""How tables show what JSON has whole."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare each verb with the options that apply to it."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        mine = verbs.add_parser(name, help=verb.about, description=f"{verb.about[0].upper()}{verb.about[1:]}.")
        for declare in verb.options:
            declare(mine)
        mine.add_argument("--db", metavar="PATH", type=Path, help="the database (default: $VORTEX_DB, ~/.cache/vortex)")


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    try:
        return VERBS[args.verb].run(args)
    except sqlite3.Error as e:
        raise NOT_DATABASE.at(path=_path(args), why=str(e)) from None


# --- looking ------------------------------------------------------------------------------------------------


def _ls(args: argparse.Namespace) -> int:
    rows = [
        {
            "id": r.id,
            "layer": layer,
            "kind": r.key.kind,
            "bucket": str(r.key.bucket),
            "target": str(r.target),
            "config": dict(r.config),
            "status": r.status,
            "us": r.us,
            "samples": len(r.samples),
        }
        for layer, r in _wanted(args)
    ]
    listing(rows, args.json, shown=SHOWN)
    if not rows:
        say("no records")
    return OK


def _show(args: argparse.Namespace) -> int:
    import json

    prefix = str(args.id)
    if len(prefix) < 4 or not set(prefix) <= set("0123456789abcdef"):
        raise BAD_OPTION.at(
            option="ID", why=f"'{prefix}' is not a record id", hint="at least 4 hex digits, see vortex db ls"
        )
    found = {r.id: r for _, r in _layers(args).records() if r.id.startswith(prefix)}
    if not found:
        raise UNKNOWN_RECORD.at(id=prefix, path=_path(args))
    if len(found) > 1:
        raise BAD_OPTION.at(option="ID", why=f"'{prefix}' begins {len(found)} records", hint="give more digits")
    emit_json(json.loads(next(iter(found.values())).to_line()))
    return OK


def _best(args: argparse.Namespace) -> int:
    from vortex.tune.record import NOISY

    first: dict[tuple[str, Bucket], tuple[str, Record]] = {}
    counts: dict[tuple[str, Bucket], int] = {}
    fastest: dict[tuple[str, Bucket], Record] = {}
    for layer, r in _wanted(args):
        if r.us is None:
            continue
        at = (r.lookup, r.key.bucket)
        counts[at] = counts.get(at, 0) + 1
        fastest[at] = min(fastest.get(at, r), r, key=_us)
        if at not in first or (r.noisy, r.us) < (first[at][1].noisy, first[at][1].us):
            first[at] = layer, r
    every = sorted(first.items(), key=lambda x: (LAYERS.index(x[1][0]), x[1][1].key.kind, x[1][1].lookup, x[0][1]))
    rows = [
        {
            "kind": r.key.kind,
            "ir": r.key.ir,
            "target": str(r.target),
            "bucket": str(r.key.bucket),
            "config": dict(r.config),
            "us": r.us,
            "of": counts[at],
            "id": r.id,
            "layer": layer,
        }
        for at, (layer, r) in every
    ]
    listing(rows, args.json, shown=SHOWN)
    for at, (_, r) in every:
        if _us(other := fastest[at]) < _us(r):
            say(
                f"{other.id[:ID]} was faster than {r.id[:ID]}, {other.us:.2f} us, and is passed over as unsteady: its "
                f"90th percentile is more than {NOISY} times its median"
            )
    if not rows:
        say("no usable records")
    return OK


def _us(r: Record) -> float:
    return inf if r.us is None else r.us


def _explain(args: argparse.Namespace) -> int:
    from vortex.tune.explain import explain
    from vortex.tune.keys import queries
    from vortex.tune.shapes import PRESETS, read_shape

    [target] = parse_targets("cpu" if args.target is None else args.target, say)[:1]
    program = flow_program(args, target)
    shape = read_shape(args.shape) if args.shape else PRESETS["bench"][0]
    layers = _layers(args)
    found = {f.name: explain(layers, query) for f, query in queries(program, target, shape)}
    if args.json:
        emit_json({"shape": str(shape), "kernels": {name: e.to_json() for name, e in found.items()}})
        return OK
    print(f"{program.name} for {target.name} at {shape}; layers: {', '.join(layers.layers) or 'none'}")
    for name, e in found.items():
        _print_explanation(name, e)
    return OK


def _print_explanation(name: str, e: Explanation) -> None:
    from vortex.tune.explain import components

    print(f"\n{name}: {'found' if e.hit else 'not found'}: {e.reason}")
    for part, value in components(e.query).items():
        print(f"  {part:<9} {value}")
    print(f"  {'bucket':<9} {e.query.key.bucket}")
    for steps, bucket in e.fallbacks:
        print(f"  fallback  {bucket} ({steps} steps)")
    if e.hit:
        r = e.hit.record
        print(f"  -> db:{r.id[:ID]} of layer {e.hit.layer}: {r.us:.2f} us, {_config(r)}")
        if e.hit.steps:
            print(f"     measured for {r.key.bucket}")
    for d in e.nearest:
        odd = "; ".join(f"{part}: asked for {a}, there {b}" for part, (a, b) in d.components.items())
        print(f"  near      {d.record.id[:ID]} ({d.record.status}): {odd or 'all alike'}")


# --- moving -------------------------------------------------------------------------------------------------


def _export(args: argparse.Namespace) -> int:
    from vortex.tune.exchange import write_file, write_lines
    from vortex.tune.transfer import sha256

    data = write_lines(r for _, r in _wanted(args, layers=False))
    if args.out is None:
        print(data.decode(), end="")
        return OK
    write_file(args.out, data)
    say(f"wrote {args.out}: {counted(data.count(10), 'record')}, sha256 {sha256(data)}")
    return OK


def _import(args: argparse.Namespace) -> int:
    from vortex.tune.exchange import read_file

    groups = {file: read_file(file, skip_bad=args.skip_bad) for file in args.files}
    with _store(args) as store:
        for file, group in groups.items():
            say(f"{file}: {counted(len(group), 'record')}, {store.put(group)} new or with new samples")
    return OK


def _merge(args: argparse.Namespace) -> int:
    from vortex.tune.exchange import read_file, write_file, write_lines
    from vortex.tune.record import merge

    if args.out is None:
        return _import(args)
    if args.db is not None:
        raise BAD_OPTION.at(option="--db", why="contradicts -o, which writes a file", hint="give one of them")
    merged = merge(*(read_file(file, skip_bad=args.skip_bad) for file in args.files))
    write_file(args.out, write_lines(merged))
    say(f"wrote {args.out}: {counted(len(merged), 'record')}")
    return OK


def _prune(args: argparse.Namespace) -> int:
    from vortex.tune.prune import prunable

    bounded(args, "keep", 1)
    with _store(args) as store:
        gone = store.remove(prunable(store.records(), args.keep))
        say(f"{counted(gone, 'record')} removed, {len(store)} left")
    return OK


def _check(args: argparse.Namespace) -> int:
    from vortex.tune.exchange import read_bytes, read_lines
    from vortex.tune.store import Store

    if args.files and args.db is not None:
        raise BAD_OPTION.at(option="--db", why="contradicts the files that are named", hint="name it as one of them")
    problems, records = [], 0
    for path in args.files or [_path(args)]:
        data = read_bytes(path)
        if data.startswith(b"SQLite format 3\0"):
            with Store(path, write=False) as store:
                found, count = store.problems(), len(store)
        else:
            reading = read_lines(data)
            found, count = reading.problems, len(reading.records)
        problems += [f"{path}: {p}" for p in found]
        records += count
    if args.json:
        emit_json({"records": records, "problems": problems})
    else:
        print("".join(f"{p}\n" for p in problems), end="")
    say(f"{counted(records, 'record')}, {counted(len(problems), 'problem')}")
    return CHECK_FAILED if problems else OK


def _pull(args: argparse.Namespace) -> int:
    from vortex.tune.exchange import parsed
    from vortex.tune.transfer import fetch, sha256, split_pin

    url, pin = split_pin(args.url)
    if pin and args.sha256:
        raise BAD_OPTION.at(option="--sha256", why="contradicts the hash behind the URL", hint="give one of them")
    data = fetch(url, pin or args.sha256.lower())
    records = parsed(data, url, skip_bad=args.skip_bad)
    with _store(args) as store:
        say(f"{counted(len(records), 'record')}, {store.put(records)} new or with new samples; sha256 {sha256(data)}")
    return OK


def _push(args: argparse.Namespace) -> int:
    from vortex.tune.transfer import publish, sha256

    url = str(args.url)
    data, before = publish(url, (r for _, r in _wanted(args, layers=False)))
    say(f"{before} records were there, {data.count(10)} are now")
    print(f"{url}#sha256={sha256(data)}")
    return OK


# --- common -------------------------------------------------------------------------------------------------


def _path(args: argparse.Namespace) -> Path:
    from vortex.install.databases import user_path

    return args.db or user_path()


def _store(args: argparse.Namespace) -> Store:
    from vortex.tune.store import Store

    return Store(_path(args))


def _layers(args: argparse.Namespace) -> Layers:
    from vortex.tune.layers import Layers

    return Layers.default(args.db)


def _wanted(args: argparse.Namespace, layers: bool = True) -> Iterator[tuple[str, Record]]:
    """The records that the options ask for; without ``layers`` only those of the database."""
    from vortex.kinds.kind import KINDS
    from vortex.tune.keys import machine_key

    kind = getattr(args, "kind", None)
    if kind is not None and kind not in KINDS:
        raise UNKNOWN_NAME.at(what="kernel kind", name=kind, nearest=nearest_or_all(kind, KINDS))
    arch = None if args.target is None else machine_key(parse_targets(args.target, say)[0]).arch
    if layers:
        yield from (x for x in _layers(args).records(kind, arch) if args.layer in (None, x[0]))
        return
    from vortex.tune.store import Store

    with Store(_path(args), write=False) as store:
        yield from (("user", r) for r in store.records(kind, arch))


def _config(r: Record) -> str:
    return " ".join(f"{k}={v}" for k, v in r.config)


# --- verbs --------------------------------------------------------------------------------------------------


Declare = Callable[[argparse.ArgumentParser], object]


@dataclass(frozen=True, slots=True)
class Verb:
    """What ``vortex db VERB`` does, in words and in code, and the options that apply to it beside ``--db``."""

    run: Callable[[argparse.Namespace], int]
    about: str
    options: tuple[Declare, ...] = ()


def _option(*names: str, **about: Any) -> Declare:
    return lambda parser: parser.add_argument(*names, **about)


KIND = _option("kind", metavar="KIND", nargs="?", help="only records of this kernel kind")
TARGET = _option("--target", metavar="NAME", help="only records of this target")
LAYER = _option("--layer", metavar="NAME", choices=LAYERS, help=f"only records of this layer: {', '.join(LAYERS)}")
JSON = _option("--json", action="store_true", help="print JSON")
FILES = _option("files", metavar="FILE", nargs="+", type=Path, help="JSON Lines, as 'vortex db export' writes them")
SKIP_BAD = _option("--skip-bad", action="store_true", help="leave out lines that are not records")

VERBS = {
    "ls": Verb(_ls, "list what there is, one line a record", (KIND, TARGET, LAYER, JSON)),
    "show": Verb(
        _show,
        "print one record, whole, as JSON",
        (_option("id", metavar="ID", help="the id, or its first digits, as 'vortex db ls' shows it"),),
    ),
    "best": Verb(_best, "list the fastest configuration of each kernel and bucket", (KIND, TARGET, LAYER, JSON)),
    "explain": Verb(
        _explain,
        "show what a compilation would find, and why a miss is a miss",
        (
            _option("flow", metavar="FLOW", help="name, file.py or file.py:name"),
            _option("--target", metavar="NAME", help="the target to compile for (default: cpu)"),
            _option("--shape", metavar="SHAPE", help="e.g. batch=8,kv_heads=8,tokens=32768,kept=30"),
            JSON,
            add_spec,
        ),
    ),
    "export": Verb(
        _export,
        "print records as canonical JSON Lines",
        (KIND, TARGET, _option("-o", dest="out", metavar="FILE", type=Path, help="write them here instead")),
    ),
    "import": Verb(_import, "add the records of files to the database", (FILES, SKIP_BAD)),
    "merge": Verb(
        _merge,
        "put the union of files into the database, or into a file",
        (FILES, SKIP_BAD, _option("-o", dest="out", metavar="FILE", type=Path, help="write the union here instead")),
    ),
    "prune": Verb(
        _prune,
        "keep the best few configurations of each kernel and bucket, and what failed",
        (_option("--keep", metavar="N", type=int, default=3, help="configurations to keep (default: 3)"),),
    ),
    "check": Verb(
        _check,
        "say whether every record is sound",
        (_option("files", metavar="FILE", nargs="*", type=Path, help="databases or JSON Lines, in its place"), JSON),
    ),
    "pull": Verb(
        _pull,
        "add the records behind a URL to the database",
        (
            _option("url", metavar="URL", help="'#sha256=HEX' behind it pins the content"),
            _option("--sha256", metavar="HEX", default="", help="what the content must hash to"),
            SKIP_BAD,
        ),
    ),
    "push": Verb(
        _push,
        "merge the records of the database into the file behind a URL",
        (_option("url", metavar="URL", help="a file, or what fsspec can write"), TARGET),
    ),
}

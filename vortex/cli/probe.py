"""What a served flow reads of the attention mass, by layer and KV head, and what to do about it.

FILE is what SGLang wrote with VORTEX_PROBE=FILE; of tensor-parallel ranks give all files (FILE FILE.1 ...).

examples:
  vortex probe probe.jsonl
  vortex probe probe.jsonl probe.jsonl.1
  vortex probe probe.jsonl --json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vortex.cli.show import emit_json, table

NOTE = """
mass/best: the share of dense attention's mass on the pages that were read, and on the best choice of as many, means
over {rows} rows (a request's KV head in a layer and step) that left pages out. A flow scores badly where the two are
more than {missed} apart, and a layer is diffuse where best is below {diffuse}, both in the mean over heads."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="files that VORTEX_PROBE names")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print a row for each layer, a column for each KV head."""
    from vortex.runtime.probes import DIFFUSE, MISSED, VARIABLE, by_head, read_probe, verdict
    from vortex.runtime.wanted import not_yet

    heads = []
    for file in args.files:
        served, lines = read_probe(Path(file))
        heads += by_head(lines, served.first_head)
    heads.sort(key=lambda h: (h.layer, h.head))
    layers = {layer: [h for h in heads if h.layer == layer] for layer in dict.fromkeys(h.layer for h in heads)}
    if args.json:
        emit_json(
            {
                "served": {n: getattr(served, n) for n in served.__slots__},
                "layers": [
                    {
                        "layer": layer,
                        "verdict": verdict(mine),
                        "heads": [
                            {"head": h.head, "rows": h.rows}
                            | {n: round(getattr(h, n), 6) if h.rows else None for n in ("mass", "best", "reserved")}
                            for h in mine
                        ],
                    }
                    for layer, mine in layers.items()
                ],
            }
        )
        return 0
    dense = ", ".join(map(str, served.dense_layers)) or "none"
    print(
        f"flow {served.flow}, {served.budget_pages} pages of {served.block_size} ({served.budget_tokens} tokens), "
        f"dense layers {dense} of {served.layers}\n"
    )
    if not layers:
        print(not_yet("probed", VARIABLE, args.files[0], served.every))
        return 0
    most = [h.head for h in max(layers.values(), key=len)]
    rows = []
    for layer, mine in layers.items():
        found = {h.head: f"{_share(h.mass)}/{_share(h.best)}" if h.rows else "-" for h in mine}
        rows.append([str(layer), *(found.get(h, "-") for h in most), verdict(mine)])
    table(["layer", *(f"head {h}" for h in most), "verdict"], rows)
    print(NOTE.format(rows=sum(h.rows for h in heads), missed=_share(MISSED), diffuse=_share(DIFFUSE)))
    return 0


def _share(x: float) -> str:
    """As ``.93``."""
    return f"{x:.2f}".removeprefix("0")

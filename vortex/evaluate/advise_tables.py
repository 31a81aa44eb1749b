"""The tables of an advice: every configuration beside dense attention, and the layers that lose mass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vortex.errors import counted
from vortex.evaluate.advise import megabytes, ranges
from vortex.evaluate.tables import NONE, Table, few, number, share
from vortex.runtime.probes import FINE, judged

if TYPE_CHECKING:
    from vortex.evaluate.advise import Advice
    from vortex.evaluate.agreement import Configuration

MOST_LAYERS = 8
"""That a table shows; the JSON has all."""


def configurations(advice: Advice) -> Table:
    """A row for each flow and budget, and one for the best dense layers beside it."""
    head = (
        "flow", "pages", "dense layers", "agreement", "log-prob", "worst", "mass", "most", "worst head", "MB",
        "of dense", "",
    )  # fmt: skip
    note = (
        f"agreement: tokens that dense attention says too, of {_tokens(advice)}. log-prob, worst: change of the dense "
        f"token's log-probability, mean and of one token. mass: share of dense attention's mass that was read; most: "
        f"what as many pages could hold. MB: of a step of one request, {advice.at.tokens} tokens, all layers. "
        f"*: advised.{few(_tokens(advice), 'token', 'was compared', 'were compared')}"
    )
    rows = tuple(_row(advice, made) for made in advice.search.shown())
    return Table(f"{counted(len(advice.lengths), 'prompt')} beside dense attention", head, rows, note)


def _tokens(advice: Advice) -> int:
    return max((a.tokens for a in advice.search.measured.values()), default=0)


def _row(advice: Advice, made: Configuration) -> tuple[str, ...]:
    found, search = advice.search.measured[made], advice.search
    layer, head = divmod(int(found.mass.argmin()), found.mass.shape[1])
    return (
        made.flow,
        str(made.pages),
        ranges(made.dense_layers) or NONE,
        share(found.share, 3),
        number(found.change, 3),
        number(found.worst, 2),
        share(float(found.mass.mean())),
        share(float(found.most.mean())),
        f"{share(float(found.mass.min()))} L{search.layers[layer]}H{head}",
        megabytes(search.bytes(made)),
        share(search.bytes(made) / search.dense_bytes),
        "*" if made == advice.chosen else "",
    )


def layers(advice: Advice) -> Table:
    """Layers that lose mass under what is advised, or else what agrees most, had it no dense layers."""
    search = advice.search
    made = search.chosen() or search.best()
    rows: list[tuple[float, tuple[str, ...]]] = []
    title = ""
    if made is not None:
        base = next(c for c in search.measured if c.lane == made.lane and not c.dense_layers)
        found = search.measured[base]
        title = f"Layers that lose most under {base.flow} with {counted(base.pages, 'page')}"
        for i, layer in enumerate(search.layers):
            mass, most = float(found.mass[i].mean()), float(found.most[i].mean())
            if (why := judged(most - mass, most)) != FINE:
                advised = "dense" if layer in made.dense_layers else NONE
                rows.append((mass, (str(layer), share(mass), share(most), advised, why)))
    note = "mass: share that was read; most: what as many pages could hold; means over KV heads, prompts and tokens."
    shown = tuple(cells for _, cells in sorted(rows)[:MOST_LAYERS])
    return Table(title, ("layer", "mass", "most", "advised", "verdict"), shown, note)

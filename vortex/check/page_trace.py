"""The page trace of ``vortex run``: which pages a flow reads of a made-up batch whose heavy pages are known.

Steps are recorded in turn with steps that are not, so that the file says what recording costs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vortex.check.synthetic_batch import Planted, Trial
from vortex.errors import writing
from vortex.runtime.decoder import Decoder
from vortex.runtime.page_trace import PagesRead, Recorded, StepTimes, Writer
from vortex.runtime.pages_read import MassRead, listed, mass_read
from vortex.runtime.stopwatch import Stopwatch


def trace_planted(
    decoder: Decoder,
    path: Path,
    lengths: Sequence[int],
    *,
    kv_heads: int,
    layers: int,
    steps: int,
    seed: int = 0,
    mass: bool = False,
) -> None:
    """Write the trace of ``steps`` recorded steps, and as many others, of requests of ``lengths`` tokens, under the
    budget and with the parameters of ``decoder``. Most of the attention mass of each row lies on its heavy pages, the
    trace's needles. With ``mass`` the lines say how much of it was read.

    Raises:
        VortexError: VX7004 where the file cannot be written.
    """
    watch = Stopwatch(decoder.library)
    timed = Decoder(watch.library, budget=decoder.budget, parameters=decoder.parameters)
    pages = sum(-(-(n + 2 * steps) // timed.spec.page_size) for n in lengths)
    trial = Trial(timed, kv_heads, pages, seed, layers=layers)
    with writing(path):
        writer = Writer(path, _recorded(trial, mass))
    for i, n in enumerate(lengths):
        trial.join(f"r{i}", n)
    for number in range(1, 2 * steps, 2):
        unrecorded = trial.step().step
        watch.on = True
        seconds = trial.step().step
        watch.on = False
        start = time.perf_counter()
        lines = [*_reads(trial, number + 1, mass)]
        with writing(path):
            writer.add(lines)
            seconds += time.perf_counter() - start
            writer.add([StepTimes(number + 1, seconds, unrecorded, watch.read())])


def _recorded(trial: Trial, mass: bool) -> Recorded:
    manifest, spec = trial.decoder.library.manifest, trial.spec
    kept = manifest.cap.total(trial.budget, 0)
    return Recorded(
        source="vortex run",
        flow=manifest.flow,
        target=trial.decoder.library.name,
        page_size=spec.page_size,
        block_size=spec.block_size,
        budget_pages=kept,
        budget_tokens=kept * spec.block_size,
        layers=len(trial.layers),
        kv_heads=trial.cache.kv_heads,
        every=2,
        mass=mass,
    )


def _reads(trial: Trial, step: int, mass: bool) -> Iterator[PagesRead]:
    """What each layer read in the trial's last step."""
    names, data = trial.requests, trial.data
    assert isinstance(data, Planted)
    tokens = tuple(trial.cache.lengths(names).tolist())
    for layer in trial.layers:
        pages, counts = trial.selected[layer]
        which = tuple(listed(pages[r], counts[r]) for r in range(len(names)))
        found = [_mass(trial, name, layer, which[r]) for r, name in enumerate(names)] if mass else []
        yield PagesRead(
            step,
            layer,
            tuple(names),
            tokens,
            tuple(-(-n // trial.spec.block_size) for n in tokens),
            which,
            mass=tuple(x.mass for x in found),
            best=tuple(x.best for x in found),
            held=tuple(x.held for x in found),
            needles=tuple(data.heavy(name, layer) for name in names),
        )


def _mass(trial: Trial, name: str, layer: int, which: tuple[tuple[int, ...], ...]) -> MassRead:
    k, _ = trial.keys_and_values(name, layer)
    q = trial.q[layer][trial.requests.index(name)].float().view(len(which), trial.spec.group, -1)
    pages = -(-len(k) // trial.spec.block_size)
    found = torch.stack([trial.mass(q[h], k[:, h], pages) for h in range(len(which))])
    return mass_read(found, which, trial.decoder.library.manifest.cap.candidates(trial.budget, pages))

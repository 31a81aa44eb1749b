"""Whether a candidate does what the flow's own IR, interpreted, does: on a few small requests that are made once.

One trial of the flow's default kernels fills a small cache. Candidates decode its last step again, on the same memory;
those of a kind that writes to the cache make a trial of their own, for what they write is what is judged.
"""

from __future__ import annotations

from functools import cached_property

from vortex.artifact.folder import read_file, read_manifest
from vortex.budget import Budget
from vortex.check.synthetic_batch import LAYER, Trial
from vortex.check.verdict import compare
from vortex.check.weights import random_parameters
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.kinds.kind import KINDS
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Library
from vortex.tune.bundle import Bundle

TOKENS = (5, 200, 1000, 6000)
"""Of the requests: short ones, and one of several work items."""
HEADS, PAGES = 2, 8


class Judge:
    """Judges libraries that differ in one kernel from ``base``, the flow's artifact in ``bundle``."""

    def __init__(self, bundle: Bundle, flow: str, base: Library) -> None:
        self.bundle, self.flow, self.base = bundle, flow, base
        self._budget = Budget(PAGES)
        self._made: Trial | None = None

    def wrong(self, kind: str, library: Library) -> str:
        """What differs, in a sentence; empty when nothing does."""
        # a step that changes state cannot be done twice
        if KINDS[kind].writes_cache or self.base.manifest.states:
            return self._compare(self._trial(library), cache=True)
        trial = self._of_base()
        decoder = Decoder(library, budget=self._budget, parameters=trial.decoder.parameters)
        cache, names = trial.cache, trial.requests
        decoder.bind(LAYER, cache.k[LAYER], cache.v[LAYER], cache.fields[LAYER], *trial.given_scales)
        decoder.plan(cache.lengths(names), cache.page_table(names))
        trial.out[LAYER].fill_(float("nan"))
        decoder.decode(LAYER, trial.q[LAYER], out=trial.out[LAYER], scale=trial.scale)
        trial.decoder = decoder
        trial.selected[LAYER] = trial.selection()
        why = self._compare(trial)
        if why:
            self._made = None  # whatever it wrote beside its outputs goes with it
        return why

    def _of_base(self) -> Trial:
        self._made = self._made or self._trial(self.base)
        return self._made

    def _trial(self, library: Library) -> Trial:
        spec = library.manifest.spec
        pages = sum(-(-(n + 2) // spec.page_size) for n in TOKENS)
        heads = 1 if spec.kv_lora_rank else HEADS
        weights = random_parameters(library.manifest.parameters, 1, heads)
        trial = Trial(Decoder(library, budget=self._budget, parameters=weights), heads, pages, seed=1, varied=True)
        for i, n in enumerate(TOKENS):
            trial.join(f"r{i}", n)
        trial.step()
        return trial

    def _compare(self, trial: Trial, cache: bool = False) -> str:
        for name in trial.requests:
            found = compare(trial, name, self._module, LAYER, cache=cache)
            if not found.good(trial.spec.dtype):
                return f"request of {found.length - 1} tokens: {found.why()}"
        return ""

    @cached_property
    def _module(self) -> Module:
        path = self.bundle.base(self.flow)
        manifest = read_manifest(path)
        name = next(n for n in manifest.files if n.endswith(".flow"))
        return parse_module(read_file(path, manifest, name).decode())

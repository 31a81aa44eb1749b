"""The page trace of ``vortex eval``: which pages a flow reads of a real model's prompts, along the right answers.

Each prompt's answer is decoded twice, by teacher forcing: once without recording, which says what recording costs, and
once with. The pages of the evidence are the trace's needles. Attention mass is always in it: evaluation measures it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vortex.budget import Budget
from vortex.errors import NOT_A_NUMBER, writing
from vortex.evaluate.decode import step
from vortex.evaluate.flow_rules import Compiled, Eager
from vortex.evaluate.lanes import Lanes, Tally
from vortex.evaluate.outcomes import Lane
from vortex.evaluate.prefill import PromptCache, memory_for, require_room
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.readers import Backend, spec_of
from vortex.evaluate.shared_pages import SharedPages
from vortex.runtime.page_trace import PagesRead, Recorded, StepTimes, Writer
from vortex.runtime.pages_read import mass_read
from vortex.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from vortex.evaluate.models import Model


class PageTrace:
    """A file that prompts are recorded to, one after the other, as one lane reads them.

    Raises:
        VortexError: what compiling the flow raises; VX7004 where the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        model: Model,
        lane: Lane,
        flow: str,
        backend: Backend = "compiled",
        parameters: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """``flow`` is where the lane's rule is found: a name, ``file.py`` or ``file.py:name``."""
        self._model, self._lane, self._budget, self._spec = model, lane, Budget(lane.budget), spec_of(model)
        given = (flow, self._spec, model.kv_heads, model.sparse_layers, model.device, parameters)
        self._watch: Stopwatch | None = None
        self._flow: Compiled | Eager
        if backend == "compiled":
            self._flow = compiled = Compiled(*given)
            self._cap, target = compiled.library.manifest.cap, compiled.library.name
            self._watch = Stopwatch(compiled.library)
            compiled.library = self._watch.library
        else:
            self._flow = eager = Eager(*given)
            self._cap, target = eager.cap, "eager"
        self._steps, kept = 0, self._cap.total(self._budget, 0)
        recorded = Recorded(
            source="vortex eval",
            flow=lane.rule,
            target=target,
            page_size=self._spec.page_size,
            block_size=self._spec.block_size,
            budget_pages=kept,
            budget_tokens=kept * self._spec.block_size,
            layers=model.layers,
            kv_heads=model.kv_heads,
            dense_layers=tuple(n for n in range(model.layers) if n not in model.sparse_layers),
            mass=True,
        )
        with writing(path):
            self._writer = Writer(path, recorded)

    def add(self, prompt: Prompt, cache: PromptCache) -> None:
        """Record the steps of a prompt's right answer.

        Raises:
            VortexError: VX9121, VX9122 for a prompt that does not fit, VX9123 where the flow gives what is no number,
                what the flow raises, and VX7004.
        """
        model, page = self._model, self._spec.page_size
        require_room(model, prompt)
        read = cache.read(model, prompt)
        with memory_for(f"decoding a prompt of {len(prompt.tokens)} tokens", model), torch.inference_mode():
            new = 1 + len(prompt.answer)
            pages = SharedPages(read, 1, new, device=model.device, dtype=model.dtype, page=page)
            self._flow.begin(pages)
            reading = Lanes(pages, [self._flow.lane(self._lane.budget)], model.sparse_layers)
            reading.begin()
            unrecorded = [self._step(prompt, reading, at) for at in range(len(prompt.answer))]
            for at, without in enumerate(unrecorded):
                self._record(prompt, reading, at, without)

    def _step(self, prompt: Prompt, reading: Lanes, at: int) -> float:
        """Seconds of the answer's step ``at``."""
        given = (prompt.tokens[-1], *prompt.answer)
        start = time.perf_counter()
        step(self._model, reading, [0], [given[at]], at)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter() - start

    def _record(self, prompt: Prompt, reading: Lanes, at: int, unrecorded: float) -> None:
        """Decode the step and write what it read and took."""
        self._steps += 1
        start, watch = time.perf_counter(), self._watch
        reading.tally = seen = _Seen(self._model.kv_heads, prompt, self._spec.page_size)
        if watch is not None:
            watch.on = True
        self._step(prompt, reading, at)
        if watch is not None:
            watch.on = False
        reading.tally = None
        for failure in reading.failed.values():
            raise failure.error or NOT_A_NUMBER.at(
                lane=self._lane, index=prompt.index, task=prompt.task, layer=failure.layer
            )
        lines = [self._line(prompt, reading.pages.prompt + at + 1, *layer, seen.evidence) for layer in seen.layers]
        with writing(self._writer.path):
            self._writer.add(lines)
            seconds = time.perf_counter() - start
            self._writer.add([StepTimes(self._steps, seconds, unrecorded, {} if watch is None else watch.read())])

    def _line(
        self, prompt: Prompt, tokens: int, layer: int, kept: torch.Tensor, mass: torch.Tensor, needles: list[int]
    ) -> PagesRead:
        """What the layer number ``layer`` of those that select read: pages ``kept`` bool ``[Hkv, n]``, beside dense
        ``mass`` ``[Hkv, G, n]``.
        """
        n = kept.shape[-1]
        which = tuple(tuple(row.nonzero()[:, 0].tolist()) for row in kept)
        held = mass_read(mass, which, self._cap.candidates(self._budget, n))
        return PagesRead(
            self._steps,
            self._model.sparse_layers[layer],
            (f"{prompt.task} {prompt.length} #{prompt.index}",),
            (tokens,),
            (n,),
            (which,),
            (held.mass,),
            (held.best,),
            (held.held,),
            (tuple(tuple(needles) for _ in which),) if needles else (),
        )


class _Seen(Tally):
    """In place of sums, what the only lane read in one step: of each layer its number, the pages and the mass."""

    def __init__(self, heads: int, prompt: Prompt, page: int) -> None:
        super().__init__(1, 0, heads, prompt.evidence, page)
        self.layers: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def add(self, at: int, kept: torch.Tensor, mass: torch.Tensor, out: torch.Tensor, dense: torch.Tensor) -> None:
        self.layers.append((at, kept[0], mass[0]))

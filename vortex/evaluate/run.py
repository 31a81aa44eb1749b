"""The evaluation itself: every prompt under every rule, those that are known already read from disk.

prompts x lanes  ->  known outcomes, read  +  the others: prefill (once), one batch of lanes -> appended to the file
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vortex.errors import VortexError
from vortex.evaluate import store
from vortex.evaluate.decode import decode
from vortex.evaluate.flow_rules import Compiled, Eager, FlowRules
from vortex.evaluate.outcomes import BASELINES, Lane, Outcome
from vortex.evaluate.prefill import PromptCache, default_folder, digest, memory_for, require_room
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.readers import Backend, Readers
from vortex.evaluate.rules import Rule, baseline
from vortex.evaluate.shared_pages import PAGE, SharedPages
from vortex.evaluate.traces import Trace, judge
from vortex.install.identity import digest as digest_of
from vortex.runtime.compiled import identity_of
from vortex.spec import Spec

if TYPE_CHECKING:
    from vortex.evaluate.models import Model

TRACED = ("ir", "constants", "source")
"""Parts of a flow's identity that say what it computes."""


class TimeIsUp(Exception):
    """The time limit was reached amid a prompt."""


@dataclass
class Result:
    """What an evaluation gave.

    Attributes:
        outcomes: of all lanes and prompts that were decoded, now or before; by prompt, then lane.
        failures: what kept a flow, or a prompt, from an outcome.
        missing: outcomes that the time limit left out.
        decoded: outcomes that were made now.
        prefilled: prompts that were read now.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    failures: dict[str, VortexError] = field(default_factory=dict)
    missing: int = 0
    decoded: int = 0
    prefilled: int = 0


@dataclass
class Evaluation:
    """How flows are evaluated.

    Attributes:
        flows: by the name they have in outcomes: a library's name, ``file.py`` or ``file.py:name``.
        budgets: candidate pages that lanes keep.
        seed: of the random rule.
        parameters: weights of flows that have some, by name.
        folder: of prompts and outcomes on disk.
        seconds: after which nothing more is begun.
    """

    model: Model
    flows: Mapping[str, str]
    budgets: Sequence[int]
    backend: Backend = "compiled"
    seed: int = 0
    parameters: Mapping[str, torch.Tensor] | None = None
    folder: Path | None = None
    seconds: float = float("inf")

    def __post_init__(self) -> None:
        self.folder = self.folder or default_folder()
        self._readers = Readers(self.model, self.flows, self.backend, self.parameters)
        self._end = time.monotonic() + self.seconds
        self._identities: dict[str, str] = {}
        self._untraced: dict[str, VortexError] | None = None
        self.result = Result()

    def untraced(self) -> Mapping[str, VortexError]:
        """What keeps flows from being traced at the model's shape, which takes no prompt to know."""
        if self._untraced is None:
            self._untraced = {}
            for rule in self.flows:
                try:
                    self._identities[rule] = self._identity(rule)
                except VortexError as error:
                    self._untraced[rule] = error
        return self._untraced

    def lanes(self) -> list[Lane]:
        """Of every prompt: the baselines, then the flows."""
        rules = [*BASELINES[1:], *self.flows]
        return [Lane("dense", 0), *(Lane(rule, k) for rule in rules for k in self.budgets)]

    def run(self, prompts: Sequence[Prompt], advance: Callable[[int, str], None] = lambda done, note: None) -> Result:
        """Decode what is not known yet.

        Raises:
            VortexError: where the disk refuses; what goes wrong with one flow or prompt is among the failures.
        """
        assert self.folder is not None
        cache, known = PromptCache(self.folder), store.Outcomes(self.folder / "outcomes.jsonl")
        result = self.result = Result(failures=dict(self.untraced()))
        self._readers.failures = result.failures
        late = False
        for done, prompt in enumerate(prompts):
            note = f"{prompt.task} {prompt.length}, prompt {prompt.index}"
            advance(done, note)
            keys = self._keys(prompt)
            found = {lane: known.get(at) for lane, at in keys.items()}
            new = [lane for lane, outcome in found.items() if outcome is None]
            if new and not late:
                try:
                    made = self._decode(cache, prompt, new)
                    known.add((keys[lane], outcome) for lane, outcome in made.items())
                    found.update(made)
                    result.decoded += len(made)
                except TimeIsUp:
                    late = True
                except VortexError as error:
                    result.failures.setdefault(f"{prompt.task} {prompt.length}", error)
            late = late or time.monotonic() > self._end
            result.missing += sum(found[lane] is None for lane in new) if late else 0
            result.outcomes += [outcome for outcome in found.values() if outcome is not None]
        advance(len(prompts), "")
        return result

    def _keys(self, prompt: Prompt) -> dict[Lane, str]:
        """What decides each lane's outcome, flows that cannot be evaluated left out."""
        made = {}
        about = (
            self.model.identity,
            digest(prompt),
            prompt.task,
            prompt.length,
            prompt.index,
            str(self._readers.spec.attrs()),
        )
        for lane in self.lanes():
            own: tuple[object, ...] = ()
            if lane.rule == "random":
                own = (self.seed,)
            elif lane.rule not in BASELINES:
                if lane.rule in self.untraced():
                    continue
                own = (self.backend, self._identities[lane.rule])
            made[lane] = store.key(*about, lane.rule if not own or lane.rule == "random" else "", lane.budget, *own)
        return made

    def _identity(self, rule: str) -> str:
        """What a flow computes, parameters included."""
        parts = identity_of(self.flows[rule], self._readers.spec, "cpu").parts
        weights = [f"{n} {x.sum().item()!r} {list(x.shape)}" for n, x in (self.parameters or {}).items()]
        return digest_of(*(parts.get(p, "") for p in TRACED), *sorted(weights))

    def _decode(self, cache: PromptCache, prompt: Prompt, lanes: Sequence[Lane]) -> dict[Lane, Outcome]:
        """Outcomes of the lanes that did not fail."""
        require_room(self.model, prompt)
        lanes = [lane for lane in lanes if self._readers.ready(lane.rule)]
        if not lanes:
            return {}
        if time.monotonic() > self._end:
            raise TimeIsUp
        self.result.prefilled += not cache.has(self.model, prompt)
        read = cache.read(self.model, prompt)
        new = 1 + max(len(prompt.answer), prompt.new_tokens)
        with memory_for(f"decoding {len(lanes)} lanes of a prompt of {len(prompt.tokens)} tokens", self.model):
            ready, reading = self._readers.lay_out(prompt, read, lanes, new, self.seed)
            lanes = [lanes[i] for i in ready]
            made = decode(self.model, prompt, lanes, reading, self._watch)
        self._readers.note(prompt, lanes, reading)
        return made

    def _watch(self) -> None:
        if time.monotonic() > self._end:
            raise TimeIsUp


def judge_trace(
    trace: Trace,
    flows: Mapping[str, str],
    budgets: Sequence[int],
    backend: Backend = "compiled",
    seed: int = 0,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> tuple[list[Outcome], dict[str, VortexError]]:
    """What the baselines and flows read of recorded steps, and what kept a flow from it; arithmetic is in f32.

    Layers and heads have the numbers that they have in the trace, from 0.
    """
    q, k = next(iter(trace.q.values())), next(iter(trace.k.values()))
    spec = Spec(page_size=PAGE, head_dim=int(k.shape[2]), group=int(q.shape[1] // k.shape[0]), dtype="f32")
    make, cpu = Compiled if backend == "compiled" else Eager, torch.device("cpu")
    ready: dict[str, FlowRules] = {}
    failures: dict[str, VortexError] = {}
    for rule, text in flows.items():
        try:
            ready[rule] = make(text, spec, int(k.shape[0]), tuple(range(len(trace.layers))), cpu, parameters)
        except VortexError as error:
            failures[rule] = error
    lanes = [Lane("dense", 0), *(Lane(rule, k) for rule in (*BASELINES[1:], *ready) for k in budgets)]

    def rules(pages: SharedPages) -> list[Rule]:
        for flow in ready.values():
            flow.begin(pages)
        return [
            baseline(lane.rule, lane.budget, str(seed))
            if lane.rule in BASELINES
            else ready[lane.rule].lane(lane.budget)
            for lane in lanes
        ]

    with torch.inference_mode():
        made, failed = judge(trace, lanes, rules, torch.float32)
    return made, {**failures, **failed}

"""A user's own prompts read through flows and budgets, and the configuration of the fewest bytes that agrees with dense
attention as much as is wanted.

prompts -> K and V, once -> the dense answer and every flow at every budget beside it, one batch a prompt
        -> waves of configurations with dense layers (vortex/evaluate/search.py) -> advice
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.budget import Budget
from vortex.errors import EVERYTHING_READ, VortexError, counted
from vortex.evaluate.agreement import Agreement, Answer, Configuration, compare
from vortex.evaluate.cost import Workload, bytes_of_flow, cost_of_baseline
from vortex.evaluate.outcomes import Lane
from vortex.evaluate.prefill import PromptCache, memory_for, require_room
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.readers import Backend, Readers
from vortex.evaluate.search import Search
from vortex.evaluate.shared_pages import PAGE
from vortex.flow.flow import file_of, find_flow
from vortex.runtime.sglang.config import EngineConfig

if TYPE_CHECKING:
    import torch

    from vortex.evaluate.models import Model

SCHEMA = 1
"""Version of :meth:`Advice.as_json`; a key that goes, or changes its meaning, makes it one more."""
DENSE = Lane("dense", 0)


@dataclass(frozen=True)
class Settings:
    """What was asked.

    Attributes:
        flows: by the name that they have here, as they were asked for.
        agreement: the share of tokens that should agree, 0 to 1.
        tokens: that are decoded of each prompt, at most.
        cost_tokens: of the request whose step's bytes are told; 0 for the mean length of the prompts.
        parameters: the file of the flows' weights; empty for none.
    """

    flows: Mapping[str, str]
    budgets: Sequence[int]
    agreement: float
    tokens: int
    page_size: int = PAGE
    backend: Backend = "compiled"
    cost_tokens: int = 0
    parameters: str = ""


class Advisor:
    """Measures what its :class:`~vortex.evaluate.search.Search` asks for.

        while wave := advisor.next():
            advisor.measure(wave)
        advisor.advice()

    Raises:
        VortexError: VX9121 for a prompt longer than the model's context, VX9126 where every budget reads all of every
            prompt.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        settings: Settings,
        *,
        parameters: Mapping[str, torch.Tensor] | None = None,
        folder: Path | None = None,
    ) -> None:
        for prompt in prompts:
            require_room(model, prompt)
        _require_choice(prompts, settings)
        self.model, self.prompts, self.settings = model, prompts, settings
        self._readers = Readers(model, settings.flows, settings.backend, parameters, settings.page_size)
        self._cache = PromptCache(folder)
        self._answers: dict[int, Answer] = {}
        self.at = self._workload()
        dense = cost_of_baseline("dense", 0, self.at).bytes
        self._search = Search(self._bytes(), dense, model.sparse_layers, settings.agreement)

    def _workload(self) -> Workload:
        """One request as an engine has it, in bf16."""
        mean = sum(len(p.tokens) for p in self.prompts) // len(self.prompts)
        spec = replace(self._readers.spec, dtype="bf16", kv_dtype="")
        return Workload(1, self.settings.cost_tokens or mean, self.model.kv_heads, spec)

    def _bytes(self) -> dict[tuple[str, int], float]:
        """Of a layer's step, by flow and budget; a flow whose bytes cannot be told joins the failures."""
        made: dict[tuple[str, int], float] = {}
        for name, text in self.settings.flows.items():
            try:
                found = bytes_of_flow(find_flow(text), self.settings.budgets, self.at)
                made |= {(name, pages): size for pages, size in found.items()}
            except VortexError as error:
                self._readers.failures[name] = error
        return made

    def next(self) -> list[Configuration]:
        """What to measure next; nothing when the advice is ready."""
        return self._search.next()

    def measure(
        self, wave: Sequence[Configuration], advance: Callable[[int, str], None] = lambda done, note: None
    ) -> None:
        """Decode all prompts with each configuration; ``advance`` is told how many tokens are done, of as many as
        prompts and :attr:`Settings.tokens` make.

        Raises:
            VortexError: VX9103 and VX9122 as :func:`~vortex.evaluate.prefill.prefill`, VX9123 where dense attention
                itself gives no numbers, VX7004 when the disk refuses; what goes wrong with one flow is among the
                failures.
        """
        found: dict[Configuration, Agreement] = {}
        for index, prompt in enumerate(self.prompts):
            for made, agreement in self._measure(index, prompt, wave, advance).items():
                found[made] = found[made] + agreement if index else agreement
        advance(len(self.prompts) * self.settings.tokens, "")
        self._search.drop(self._readers.failures)
        self._search.measured |= {made: a for made, a in found.items() if made.flow not in self._readers.failures}

    def _measure(
        self, index: int, prompt: Prompt, wave: Sequence[Configuration], advance: Callable[[int, str], None]
    ) -> dict[Configuration, Agreement]:
        """How the configurations that do not fail agree on one prompt."""
        done = count(index * self.settings.tokens)
        read = self._cache.read(self.model, prompt)
        answer = self._answers.get(index)
        # the dense answer is written in the first wave, by a lane of its own
        first = [] if answer else [DENSE]
        lanes = [*first, *(c.lane for c in wave)]
        dense = [*((),) * len(first), *(c.dense_layers for c in wave)]
        with memory_for(f"decoding {len(lanes)} lanes of {prompt.task}, {len(prompt.tokens)} tokens", self.model):
            ready, reading = self._readers.lay_out(prompt, read, lanes, 1 + prompt.new_tokens, dense=dense)
            self._answers[index], agreements = compare(
                self.model, prompt, reading, answer, lambda: advance(next(done), prompt.task)
            )
        self._readers.note(prompt, [lanes[i] for i in ready], reading)
        if (wrong := self._readers.failures.get(DENSE.rule)) is not None:
            raise wrong
        return {
            wave[i - len(first)]: agreement
            for row, (i, agreement) in enumerate(zip(ready, agreements, strict=True))
            if i >= len(first) and row not in reading.failed
        }

    def advice(self) -> Advice:
        """What was found."""
        answers = [self._answers.get(i, Answer((), ())) for i in range(len(self.prompts))]
        said = [self.model.tokenizer.decode(a.tokens, skip_special_tokens=True) for a in answers]
        lengths = [len(p.tokens) for p in self.prompts]
        return Advice(
            self.model.name, self.settings, self.at, tuple(lengths), tuple(said), self._search, self._readers.failures
        )


def _require_choice(prompts: Sequence[Prompt], settings: Settings) -> None:
    """VX9126 where every budget reads every page of every prompt."""
    least = min(settings.budgets)
    budget = Budget(least)
    longest = max(len(p.tokens) + p.new_tokens for p in prompts)
    pages = -(-longest // settings.page_size)
    if pages <= budget.total(pages):
        kept = f"{counted(least, 'page')} beside the first {budget.sink} and the last {budget.recent}"
        raise EVERYTHING_READ.at(tokens=longest, pages=pages, page=settings.page_size, kept=kept)


@dataclass(frozen=True)
class Advice:
    """What came of a search.

    Attributes:
        model: its name.
        at: the request whose step's bytes are told.
        lengths: tokens of each prompt.
        answers: the dense answers, as texts; empty where no flow could be measured.
        search: all that was measured.
        failures: flows that could not be measured, and why.
    """

    model: str
    settings: Settings
    at: Workload
    lengths: tuple[int, ...]
    answers: tuple[str, ...]
    search: Search
    failures: Mapping[str, VortexError]

    @property
    def chosen(self) -> Configuration | None:
        return self.search.chosen()

    def config(self, made: Configuration) -> dict[str, object]:
        """What ``--vortex-config`` of SGLang takes for it, wherever it is started: files have their whole paths."""
        flow = self.settings.flows[made.flow]
        told: dict[str, object] = {
            "flow": os.path.abspath(flow) if file_of(flow) else flow,
            "budget": {"pages": made.pages},
            "dense_layers": list(made.dense_layers),
            "page_size": self.settings.page_size,
        }
        if self.settings.parameters:
            told["parameters"] = os.path.abspath(self.settings.parameters)
        EngineConfig.read(json.dumps(told))  # an engine that does not know a key refuses it here already
        return told

    def why(self) -> str:
        """One sentence: what the advice rests on."""
        wanted = percent(self.settings.agreement)
        made, best = self.search.chosen(), self.search.best()
        if made is not None:
            return f"{self._told(made)}: the fewest bytes of all that were tried and agree on {wanted} or more."
        if best is None:
            return "No flow could be measured."
        return (
            f"Nothing that was tried agrees on {wanted} for fewer bytes than dense attention; {self._told(best)}, "
            "which is the most: ask for less (--agreement), try larger budgets or other flows (--budgets, --flows), or "
            f"serve densely, for {megabytes(self.search.dense_bytes)} MB a step."
        )

    def _told(self, made: Configuration) -> str:
        """What a configuration does and costs, in words."""
        found, size = self.search.measured[made], self.search.bytes(made)
        dense = made.dense_layers
        layers = f" and layer{'s' if len(dense) > 1 else ''} {ranges(dense)} dense" if dense else ""
        return (
            f"{made.flow} with {counted(made.pages, 'page')}{layers} agrees with dense attention on {found.agreed} of "
            f"{found.tokens} tokens ({percent(found.share)}) and reads and writes {megabytes(size)} MB a step, "
            f"{percent(size / self.search.dense_bytes)} of dense attention's {megabytes(self.search.dense_bytes)}"
        )

    def as_json(self) -> dict[str, object]:
        """As docs/advise.md describes it."""
        settings, search, made, best = self.settings, self.search, self.search.chosen(), self.search.best()
        return {
            "schema": SCHEMA,
            "settings": {
                "model": self.model,
                "flows": dict(settings.flows),
                "budgets": list(settings.budgets),
                "agreement": settings.agreement,
                "tokens": settings.tokens,
                "page_size": settings.page_size,
                "backend": settings.backend,
                "cost_tokens": self.at.tokens,
                "layers": list(search.layers),
            },
            "prompts": [{"tokens": n, "answer": text} for n, text in zip(self.lengths, self.answers, strict=True)],
            "dense_bytes": search.dense_bytes,
            "configurations": [self._row(c) for c in search.measured],
            "layers": [row for c in search.measured if not c.dense_layers for row in self._layers(c)],
            "chosen": None if made is None else {**self._row(made), "config": self.config(made)},
            "best": None if best is None else {**self._row(best), "config": self.config(best)},
            "why": self.why(),
            "failures": [{"flow": name, "message": error.render()} for name, error in self.failures.items()],
        }

    def _row(self, made: Configuration) -> dict[str, object]:
        """A configuration with its figures."""
        found, size = self.search.measured[made], self.search.bytes(made)
        layer, head = divmod(int(found.mass.argmin()), found.mass.shape[1])
        return {
            "flow": made.flow,
            "pages": made.pages,
            "dense_layers": list(made.dense_layers),
            "agreement": rounded(found.share),
            "agreed": found.agreed,
            "tokens": found.tokens,
            "logprob_change": rounded(found.change),
            "worst_logprob_change": rounded(found.worst),
            "mass": rounded(float(found.mass.mean())),
            "most_mass": rounded(float(found.most.mean())),
            "worst_head": {"layer": self.search.layers[layer], "head": head, "mass": rounded(float(found.mass.min()))},
            "bytes": rounded(size),
            "of_dense": rounded(size / self.search.dense_bytes),
            "reaches": self.search.reaches(made),
        }

    def _layers(self, made: Configuration) -> list[dict[str, object]]:
        """The mass of each layer at a flow and budget, without dense layers."""
        found, diffuse = self.search.measured[made], self.search.diffuse(made)
        return [
            {
                "flow": made.flow,
                "pages": made.pages,
                "layer": layer,
                "mass": rounded(float(found.mass[i].mean())),
                "most_mass": rounded(float(found.most[i].mean())),
                "diffuse": layer in diffuse,
            }
            for i, layer in enumerate(self.search.layers)
        ]


def rounded(x: float) -> float:
    """With six digits."""
    return float(f"{x:.6g}")


def percent(x: float) -> str:
    return f"{100 * x:.1f} %".replace(".0 %", " %")


def megabytes(x: float) -> str:
    return f"{x / 1e6:.2f}"


def ranges(numbers: Sequence[int]) -> str:
    """``0-2,5`` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)

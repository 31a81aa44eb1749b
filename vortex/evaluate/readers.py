"""The flows of an evaluation, ready to read a model's prompts: each is compiled once, and its lanes are laid out over
the shared pages of one prompt after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from vortex.errors import NOT_A_NUMBER, VortexError
from vortex.evaluate.flow_rules import Compiled, Eager, FlowRules
from vortex.evaluate.lanes import Lanes
from vortex.evaluate.outcomes import BASELINES, Lane
from vortex.evaluate.prefill import Prefilled, digest
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.rules import Rule, baseline
from vortex.evaluate.shared_pages import PAGE, SharedPages
from vortex.flow.flow import find_flow
from vortex.runtime.tensors import TORCH
from vortex.spec import Spec

if TYPE_CHECKING:
    from vortex.evaluate.models import Model

Backend = Literal["compiled", "eager"]


def spec_of(model: Model, page: int = PAGE) -> Spec:
    """What flows are compiled for, with pages of so many tokens."""
    names = {torch_type: name for name, torch_type in TORCH.items() if name in ("f32", "bf16", "f16")}
    return Spec(
        page_size=page,
        head_dim=model.head_dim,
        group=model.group,
        dtype=names[model.dtype],
        kv_lora_rank=model.kv_lora_rank,
    )


def flow_names(flows: Sequence[str]) -> dict[str, str]:
    """What each flow is called in outcomes: its own name, or the text it was asked for by where two have the same.

    Raises:
        VortexError: what keeps a flow from being found.
    """
    own = {text: find_flow(text).flow_name for text in dict.fromkeys(flows)}
    names = list(own.values())
    return {text: text if names.count(name) > 1 or name in BASELINES else name for text, name in own.items()}


class Readers:
    """``flows``, by the name they have in outcomes, at the shape of a model.

    Attributes:
        failures: what kept a flow from reading; it takes no part in what is laid out later.
    """

    def __init__(
        self,
        model: Model,
        flows: Mapping[str, str],
        backend: Backend = "compiled",
        parameters: Mapping[str, torch.Tensor] | None = None,
        page: int = PAGE,
    ) -> None:
        self.model, self.flows, self.backend, self.parameters = model, flows, backend, parameters
        self.spec = spec_of(model, page)
        self.failures: dict[str, VortexError] = {}
        self._ready: dict[str, FlowRules] = {}

    def ready(self, rule: str) -> bool:
        """Whether a baseline or flow can read; a flow is compiled for it."""
        if rule in BASELINES:
            return True
        if rule not in self._ready and rule not in self.failures:
            model, make = self.model, Compiled if self.backend == "compiled" else Eager
            try:
                self._ready[rule] = make(
                    self.flows[rule], self.spec, model.kv_heads, model.sparse_layers, model.device, self.parameters
                )
            except VortexError as error:
                self.failures[rule] = error
        return rule not in self.failures

    def lay_out(
        self,
        prompt: Prompt,
        read: Prefilled,
        lanes: Sequence[Lane],
        new_tokens: int,
        seed: int = 0,
        dense: Sequence[Collection[int]] = (),
    ) -> tuple[list[int], Lanes]:
        """The numbers of those of ``lanes`` whose flow is ready, and these lanes over the pages of ``prompt`` with room
        for ``new_tokens``. ``dense`` are each lane's layers that read everything; ``seed`` is of random pages.
        """
        pages = SharedPages(
            read,
            len(lanes),
            new_tokens,
            device=self.model.device,
            dtype=self.model.dtype,
            page=self.spec.page_size,
        )
        for rule in dict.fromkeys(lane.rule for lane in lanes if lane.rule not in BASELINES):
            if self.ready(rule):
                try:
                    self._ready[rule].begin(pages)
                except VortexError as error:
                    self.failures[rule] = error
        taking_part = [i for i, lane in enumerate(lanes) if self.ready(lane.rule)]
        rules = [self._rule(lanes[i], f"{seed} {digest(prompt)}") for i in taking_part]
        return taking_part, Lanes(
            pages, rules, self.model.sparse_layers, [dense[i] for i in taking_part] if dense else ()
        )

    def note(self, prompt: Prompt, lanes: Sequence[Lane], reading: Lanes) -> None:
        """Take the lanes of ``reading`` that failed on the prompt among the failures."""
        for at, failure in reading.failed.items():
            lane = lanes[at]
            why = failure.error or NOT_A_NUMBER.at(lane=lane, index=prompt.index, task=prompt.task, layer=failure.layer)
            self.failures.setdefault(lane.rule, why)

    def _rule(self, lane: Lane, seed: str) -> Rule:
        if lane.rule in BASELINES:
            return baseline(lane.rule, lane.budget, seed)
        return self._ready[lane.rule].lane(lane.budget)

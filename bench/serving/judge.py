"""What answers are compared with: those of a dense server, and a simulation in plain torch."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIE = {"float16": 0.1, "float32": 1e-4}
"""Answers may part where the next best token was this near, in nats of the dense backend."""
REGRET = {"float16": 0.5, "float32": 1e-3}
"""Logits that a token may be below the simulation's best; the small models' logits have a deviation of 8."""


@dataclass
class Judge:
    """Of answers of models in ``dtype``, which says what is near enough."""

    dtype: str
    processes: int
    """For each model's simulations."""
    pools: dict[Path, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def agree(self, said: list[dict[str, Any]], want: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = [(s["ids"], list(zip(w["ids"], w["gaps"], strict=True))) for s, w in zip(said, want, strict=True)]
        return _agreement(pairs, TIE[self.dtype])

    def by_simulation(self, model: Path, answers: list[dict[str, Any]]) -> dict[str, Any]:
        """What the simulation of each answer thinks of its tokens."""
        regrets = self._simulate(model, answers)
        allowed = REGRET[self.dtype]
        tokens = sorted(regret for one in regrets for regret in one)
        over = [(number, one.index(max(one)), round(max(one), 3)) for number, one in enumerate(regrets) if one]
        return {
            "tokens": len(tokens), "best": sum(regret == 0 for regret in tokens),
            "over": sum(regret > allowed for regret in tokens), "allowed": allowed,
            "p99": round(tokens[int(len(tokens) * 0.99)], 4) if tokens else None,
            "worst": sorted(over, key=lambda entry: -entry[2])[:4],
        }  # fmt: skip

    def _simulate(self, model: Path, asked: list[dict[str, Any]]) -> list[list[float]]:
        """Regrets of each of ``asked``: arguments of Simulation, prompt, answer and restarts. The processes stay."""
        if not asked:
            return []
        with self.lock:
            if model not in self.pools:
                self.pools[model] = multiprocessing.get_context("spawn").Pool(self.processes, _load, (str(model),))
        return self.pools[model].map(_regrets, asked, chunksize=1)

    def close(self) -> None:
        for pool in self.pools.values():
            pool.terminate()


def _agreement(pairs: list[tuple[list[int], list[tuple[int, float]]]], tie: float) -> dict[str, Any]:
    """How many answers are the same; of the others, those that part at a near tie, and the rest."""
    same, near, wrong = 0, 0, []
    for number, (got, want) in enumerate(pairs):
        first = next((i for i, (g, (w, _)) in enumerate(zip(got, want, strict=False)) if g != w), None)
        if first is None and len(got) == len(want):
            same += 1
        elif first is not None and want[first][1] < tie:
            near += 1
        else:
            wrong.append({"which": number, "token": first, "gap": None if first is None else round(want[first][1], 4)})
    return {"of": len(pairs), "same": same, "near_tie": near, "wrong": len(wrong), "which": wrong[:8]}


_MODEL: Any = None


def _load(path: str) -> None:
    global _MODEL
    import torch
    from simulation import load

    torch.set_num_threads(1)
    _MODEL = load(path)


def _regrets(one: dict[str, Any]) -> list[float]:
    from simulation import Simulation

    words = dict(one)
    prompt, answer, restarts = words.pop("prompt"), words.pop("answer"), words.pop("restarts", ())
    return [behind for _, behind in Simulation(_MODEL, said=answer, **words).steps(prompt, len(answer), restarts)]

"""Triton's best configuration for a shape: compiled side by side, timed under graphs, kept with its time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from triton.runtime._async_compile import AsyncCompileMode

from . import triton_attend, triton_select
from .cases import Tensors
from .ceiling import time_graph

C = TypeVar("C")
Launches = tuple[tuple[int, ...], list[Any], dict[str, Any]]


def compile_all(kernel: Any, launches: Iterable[Launches], workers: int = 12) -> None:
    """Fills Triton's cache on several threads."""
    with ThreadPoolExecutor(workers) as pool, AsyncCompileMode(pool, ignore_errors=True):
        for grid, given, fixed in launches:
            kernel.warmup(*given, grid=grid, **fixed)


def fastest(configs: Iterable[C], bind: Callable[[C], Callable[[Tensors], object]], sets: Sequence[Tensors],
            runs: int = 5) -> list[tuple[float, C]]:  # fmt: skip
    """Microseconds and configuration, best first; what does not fit the device is left out."""
    found = []
    for config in configs:
        try:
            launch = bind(config)
            us = time_graph([lambda one=one, launch=launch: launch(one) for one in sets], runs).us
        except Exception as error:  # out of shared memory or registers
            print(f"{config}: {type(error).__name__}: {str(error)[:120]}")
            continue
        found.append((us, config))
    return sorted(found, key=lambda pair: pair[0])


def attend(sets: Sequence[Tensors], seeds: int = 4) -> triton_attend.Attend:
    """Code first at about four programs an SM, then the splits of the best few."""
    one = sets[0]
    rows, tokens = one["counts"].numel(), one["pages"].shape[-1] * one["k"].shape[2]
    bind = lambda config: triton_attend.Attend(one, config)  # noqa: E731

    def guess(config: triton_attend.Config) -> triton_attend.Config:
        choice = [s for s in triton_attend.splits_for(rows, tokens, config.block) if rows * s <= 4 * 132] or [1]
        return dataclasses.replace(config, splits=choice[-1])

    first = [guess(c) for c in triton_attend.space(one["q"].shape[-1])]
    compile_all(triton_attend.attend_kernel, (bind(c).arguments(one) for c in first))
    leaders = [c for _, c in fastest(first, bind, sets)[:seeds]]
    second = [
        dataclasses.replace(c, splits=s) for c in leaders for s in triton_attend.splits_for(rows, tokens, c.block)
    ]
    compile_all(triton_attend.attend_kernel, (bind(c).arguments(one) for c in second))
    return bind(fastest(second, bind, sets)[0][1])


def score(kind: str, sets: Sequence[Tensors]) -> triton_select.Score:
    one = sets[0]
    configs = triton_select.space(kind == "quest", one["field.mean"].shape[1])
    bind = lambda config: triton_select.Score(kind, config)  # noqa: E731
    compile_all(triton_select.score_kernel, (bind(c).arguments(one) for c in configs))
    return bind(fastest(configs, bind, sets)[0][1])

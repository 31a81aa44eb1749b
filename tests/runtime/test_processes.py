"""Decoders in several threads, and in processes that were forked."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

import vortex
from vortex.driver import compile_flow
from vortex.runtime.decoder import Decoder, load

SPEC = vortex.Spec(page_size=4, head_dim=16, group=2, dtype="f32")
BUDGET = vortex.Budget(pages=3, sink=1, recent=1)
PAGES, HEADS, BATCH = 24, 2, 3


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a") / "quest.vxa"
    compile_flow("quest", spec=SPEC, out=path)
    return path


def steps(decoder: Decoder, seed: int, count: int = 20) -> list[torch.Tensor]:
    """Outputs of steps on numbers that ``seed`` decides."""
    numbers = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(PAGES * BATCH, HEADS, 4, 16, generator=numbers) for _ in range(2))
    low, high = k.amin(2), k.amax(2)
    fields = {f.name: low if "min" in f.name else high for f in decoder.fields}
    decoder.bind(0, k, v, fields)
    table = torch.arange(PAGES * BATCH, dtype=torch.int32).view(BATCH, PAGES)
    made = []
    for step in range(count):
        lengths = torch.tensor([PAGES * 4 - step, 40 + step, 5], dtype=torch.int32)
        out = torch.empty(BATCH, HEADS * 2, 16)
        decoder.plan(lengths, table)
        decoder.decode(0, torch.randn(BATCH, HEADS * 2, 16, generator=numbers), out=out)
        made.append(out)
    return made


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_decoder_for_each_thread(artifact: Path) -> None:
    want = [steps(load(artifact, budget=BUDGET), seed) for seed in range(4)]
    assert not same(want[0], want[1])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(lambda seed: steps(load(artifact, budget=BUDGET), seed), range(4)))
            assert all(map(same, got, want))


@pytest.mark.parametrize("threads", [1, 2])
def test_forked(artifact: Path, threads: int) -> None:
    """The child of a process whose threads have run kernels goes on, with its parent's decoder and with a new one."""
    decoder = load(artifact, budget=BUDGET)
    decoder.library.set_num_threads(threads)
    want = steps(decoder, 1)
    context = multiprocessing.get_context("fork")
    answers: SimpleQueue[bool] = context.SimpleQueue()

    def child() -> None:
        answers.put(same(steps(decoder, 1), want) and same(steps(load(artifact, budget=BUDGET), 1), want))

    process = context.Process(target=child)
    process.start()
    process.join(30)
    hangs = process.is_alive()
    process.kill()
    assert not hangs, "the child waits for threads that it has not"
    assert process.exitcode == 0
    assert answers.get()
    assert same(steps(decoder, 1), want), "the parent goes on"

"""What a new user tries first, on a GPU: ``vortex.decode``, the decode loop of docs/python.md, ``vortex trace``.

    export XDG_CACHE_HOME=.gpu/first_hour/cache
    python3 bench/gpu_first_hour.py --files .gpu/first_hour --out $OUT/first_hour.json

Kernels come from the cache that bench/stage_first_hour.py filled on a machine with the compiler.

* ``decode``: the flow's torch code over tensors of the device, its kernels, and dense attention by torch.
* ``loop``: ``vortex.load``, ``vortex.Decoder`` and ``vortex.PagedCache``, each step held to the flow's torch code.
* ``trace``: of ``vortex run`` and as ``vortex eval`` records: each kernel has a time, and together they are shorter
  than the step; what recording costs.
* ``stopwatch``: a step of a decoder, of one whose kernels could be timed, and of one whose kernels are timed.

The exit code is 1 where something is wrong. ``--device cpu`` tries all of it where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from checks import Checks, Wrong, refuses

import vortex
from vortex.check.reference import Judged, differing, eager
from vortex.check.verdict import TOLERANCE
from vortex.cli.main import main as vortex_command
from vortex.evaluate.models import load_model
from vortex.evaluate.outcomes import Lane
from vortex.evaluate.page_trace import PageTrace
from vortex.evaluate.prefill import PromptCache
from vortex.evaluate.prompts import Prompt
from vortex.flow.oracle import attend
from vortex.page_traces.figures import figures_of
from vortex.runtime.compiled import ModelShape, artifact_for, compiler
from vortex.runtime.decoder import NewTokens
from vortex.runtime.page_trace import StepTimes, read_page_trace
from vortex.runtime.stopwatch import Stopwatch
from vortex.runtime.tensors import SHORT

LENGTHS = [1500, 333, 16, 1]


class Weighted(vortex.vFlow):
    """Mean keys under learned weights of each KV head, and a score that state would move: a class, not a name."""

    def create_cache(self, spec: Any) -> dict[str, vortex.Field]:
        self.w = vortex.Parameter("w", (spec.head_dim,), "f32", per="head")
        return {"mean": vortex.Field(spec.head_dim), "score": vortex.Field(dtype="f32", state="page", init=1.0)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.score * (cache.mean @ (q.mean(0) * self.w))
        return vortex.topk(score), {"score": score}


class Last(vortex.vFlow):
    """The pages whose mean keys fit least; no cache has it."""

    def create_cache(self, spec: Any) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(-(cache.mean @ q.mean(0)))


@dataclass(frozen=True)
class Case:
    """A flow over a model's shape."""

    flow: str | type[vortex.vFlow]
    dtype: str
    heads: int = 8
    kv_heads: int = 2
    dim: int = 64
    all_pages: bool = True
    """Whether a large budget keeps all pages."""

    @property
    def spec(self) -> vortex.Spec:
        return vortex.Spec(page_size=16, head_dim=self.dim, group=self.heads // self.kv_heads, dtype=self.dtype)

    def located(self, files: Path) -> str | type[vortex.vFlow]:
        """The flow, a file's among those that were staged."""
        return str(files / self.flow) if isinstance(self.flow, str) and ".py" in self.flow else self.flow

    def __str__(self) -> str:
        return f"{self.flow if isinstance(self.flow, str) else self.flow.__name__} {self.dtype} d{self.dim}"


QUEST = Case("quest", "bf16", heads=32, kv_heads=8, dim=128)
CASES = (QUEST, Case("block_topk", "f16"), Case("twilight.py", "bf16", all_pages=False), Case(Weighted, "bf16"))
EVALUATED = Case("quest", "bf16", heads=4)
"""The shape of the small model that bench/stage_first_hour.py makes."""


class Tensors:
    """The arguments of a call, whose padding is NaN, and what is right of them."""

    def __init__(self, case: Case, device: str, seed: int = 0) -> None:
        made = torch.Generator().manual_seed(seed)
        dtype = next(long for long, short in SHORT.items() if short == case.dtype)
        at = len(LENGTHS), LENGTHS[0], case.kv_heads, case.dim
        shapes = ((at[0], case.heads, case.dim), at, at)
        self.q, self.k, self.v = (torch.randn(s, generator=made).to(device, dtype) for s in shapes)
        for row, n in enumerate(LENGTHS):
            self.k[row, n:], self.v[row, n:] = float("nan"), float("nan")
        self.case, self.parameters = case, {"w": torch.randn(1, case.kv_heads, case.dim, generator=made)}

    def decode(self, flow: Any, budget: vortex.Budget | int, **options: Any) -> Any:
        if flow is Weighted:
            options["parameters"] = self.parameters
        return vortex.decode(flow, self.q, self.k, self.v, budget=budget, lengths=LENGTHS, **options)

    def row(self, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A request's, on the CPU."""
        n = LENGTHS[row]
        return self.q[row].cpu(), self.k[row, :n].cpu(), self.v[row, :n].cpu()

    def dense(self) -> torch.Tensor:
        """torch's own attention, fp32 on the device."""
        q, k, v = (x.float() for x in (self.q[:, :, None], self.k.transpose(1, 2), self.v.transpose(1, 2)))
        mask = torch.arange(LENGTHS[0], device=q.device) < torch.tensor(LENGTHS, device=q.device)[:, None]
        given = q, k.nan_to_num(0), v.nan_to_num(0), mask[:, None, None]
        return F.scaled_dot_product_attention(*given, enable_gqa=True)[:, :, 0]


def off(mine: torch.Tensor, right: torch.Tensor) -> float:
    """As ``vortex run`` measures: the largest difference, relative to the largest number, at least 1."""
    mine, right = mine.float().cpu(), right.float().cpu()
    found = float((mine - right).abs().max() / max(1.0, float(right.abs().max())))
    return found if found == found else float("inf")


def unlike(
    case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pages: list[list[int]], out: torch.Tensor,
    right: Judged, budget: vortex.Budget,
) -> tuple[int, float]:  # fmt: skip
    """Of one request: pages that rounding does not explain, and how far ``out`` is from attention to its own pages."""
    odd, error, size = 0, 0.0, case.spec.page_size
    q, k, v = q.float(), k.float(), v.float()
    for h, mine in enumerate(pages):
        odd += differing(mine, right, h, budget)
        tokens = torch.isin(torch.arange(len(k)) // size, torch.tensor(mine))
        group = slice(h * case.spec.group, (h + 1) * case.spec.group)
        error = max(error, off(out[group], attend(q[group], k[tokens, h], v[tokens, h], case.dim**-0.5)[0]))
    return odd, error


def decodes(case: Case, files: Path, device: str, found: dict[str, Any]) -> Wrong:
    """Torch code on the device and on the CPU, kernels, and dense attention where all pages are kept."""
    wrong: Wrong = []
    flow, t, most = case.located(files), Tensors(case, device), TOLERANCE[case.dtype]
    cls = vortex.find_flow(flow) if isinstance(flow, str) else flow
    right = eager(cls, case.spec, t.parameters if cls is Weighted else None)
    here = t.decode(flow, 8, details=True)
    on_cpu = Tensors(case, "cpu").decode(flow, 8, details=True)
    if (here.out.device.type, here.lse.device.type, here.out.dtype) != (device, device, t.q.dtype):
        wrong.append(f"eager gives {here.out.dtype} on {here.out.device} and {here.lse.device}")
    if here.pages != on_cpu.pages or not torch.equal(here.out.cpu(), on_cpu.out):
        wrong.append("eager on the device and on the CPU differ")
    began = time.perf_counter()
    t.decode(flow, 8, compiled=True)
    first, odd, error, lse = time.perf_counter() - began, 0, 0.0, 0.0
    for budget in (vortex.Budget(8), vortex.Budget(1, "1/4", sink=0, recent=1)):
        slow, fast = (t.decode(flow, budget, details=True, compiled=compiled) for compiled in (False, True))
        if (fast.out.device.type, fast.lse.device.type, fast.out.dtype) != (device, device, t.q.dtype):
            wrong.append(f"kernels give {fast.out.dtype} on {fast.out.device} and {fast.lse.device}")
        for row, pages in enumerate(fast.pages):
            q, k, v = t.row(row)
            counted, by = unlike(
                case, q, k, v, pages, fast.out[row], right(q.float(), k.float(), v.float(), budget), budget
            )
            odd, error = odd + counted, max(error, by)
            if pages == slow.pages[row]:
                error, lse = max(error, off(fast.out[row], slow.out[row])), max(lse, off(fast.lse[row], slow.lse[row]))
    names = ("eager", "kernels") if case.all_pages else ()
    every = {name: off(t.decode(flow, 1000, compiled=name == "kernels"), t.dense()) for name in names}
    if odd:
        wrong.append(f"{odd} pages that rounding does not explain")
    errors = {"out": error, "lse": lse, **{f"{n} and dense": x for n, x in every.items()}}
    wrong += [f"{what} by {x:.1e}, more than {most}" for what, x in errors.items() if not x <= most]
    began = time.perf_counter()
    t.decode(flow, 8, compiled=True)
    found["decode"][str(case)] = {
        "error": error, "lse_error": lse, "dense_error": every, "tolerance": most,
        "first_seconds": first, "seconds": time.perf_counter() - began,
    }  # fmt: skip
    return wrong


def other_calls(device: str) -> Wrong:
    """Views, gradients and another stream change nothing; tensors that lie elsewhere, and a flow that is in no cache,
    are refused.
    """
    wrong: Wrong = []
    t = Tensors(QUEST, device)
    want = t.decode("quest", 8, compiled=True)
    plain = t.q, t.k, t.v
    t.q, t.k, t.v = t.q.mT.contiguous().mT, t.k.transpose(1, 2).contiguous().transpose(1, 2), t.v.requires_grad_()
    if not torch.equal(t.decode("quest", 8, compiled=True), want):
        wrong.append("views have other bits")
    t.q, t.k, t.v = plain
    if device == "cuda":
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(100_000_000)
            late = [x.clone() for x in plain]
            made = vortex.decode("quest", *late, budget=8, lengths=LENGTHS, compiled=True)
        torch.cuda.synchronize()
        if not torch.equal(made, want):
            wrong.append("another stream has other bits")
        wrong += refuses("k on the CPU", "VX6002", lambda: vortex.decode("quest", t.q, t.k.cpu(), t.v, budget=8))

    if compiler() is None:
        for code, flow in (("VX9004", "gqa_block"), ("VX4003", Last)):
            wrong += refuses(f"{flow}, never compiled", code, lambda f=flow: t.decode(f, 8, compiled=True))
    return wrong


def loop(device: str, target: str) -> Wrong:
    """The loop of docs/python.md on the device, by ``vortex.load`` and by ``vortex.Decoder``."""
    path = artifact_for("quest", ModelShape(QUEST.spec, QUEST.kv_heads), target)
    budget = vortex.Budget(pages=8, sink=1, recent=2)
    loaded = vortex.load(path, budget=budget, target="cpu" if device == "cpu" else None)
    wrong = [] if loaded.library.name == target else [f"load took the kernels for {loaded.library.name}"]
    for name, decoder in (("load", loaded), ("Decoder", vortex.Decoder(loaded.library, budget=budget))):
        wrong += [f"{name}: {w}" for w in decode_loop(decoder, device)]
    return wrong


def decode_loop(decoder: vortex.Decoder, device: str) -> Wrong:
    layers, spec, heads = 2, decoder.spec, QUEST.kv_heads
    cache = vortex.PagedCache(200, heads, spec, decoder.fields, layers=layers, device=device)
    for layer in range(layers):
        decoder.bind(layer, cache.k[layer], cache.v[layer], cache.fields[layer])
    requests, prompts = ["a", "b"], [1000, 300]
    for request in requests:
        cache.add(request)
    made = torch.Generator().manual_seed(1)
    said = {(layer, r): torch.zeros(0, 2, heads, spec.head_dim) for layer in range(layers) for r in requests}

    def new_tokens(layer: int, loc: torch.Tensor, row_offsets: torch.Tensor) -> NewTokens:
        kv = torch.randn(len(loc), 2, heads, spec.head_dim, generator=made).to(torch.bfloat16)
        for r, part in zip(requests, kv.split(row_offsets.diff().tolist()), strict=True):
            said[layer, r] = torch.cat([said[layer, r], part.float()])
        k, v = kv.to(device).unbind(1)
        return k.contiguous(), v.contiguous(), loc, row_offsets

    loc, row_offsets = cache.extend_batch(requests, prompts)
    decoder.plan(cache.lengths(requests), cache.page_table(requests))
    for layer in range(layers):
        decoder.append(layer, *new_tokens(layer, loc, row_offsets))
    out = torch.empty(len(requests), QUEST.heads, spec.head_dim, dtype=torch.bfloat16, device=device)
    right, worst, odd = eager(vortex.find_flow("quest"), spec), 0.0, 0
    assert decoder.budget is not None
    for _ in range(3):
        loc, row_offsets = cache.extend_batch(requests, [1] * len(requests))
        decoder.plan(cache.lengths(requests), cache.page_table(requests))
        for layer in range(layers):
            q = torch.randn(out.shape, generator=made).to(torch.bfloat16)
            decoder.decode(layer, q.to(device), out=out, new=new_tokens(layer, loc, row_offsets))
            assert decoder.pages is not None
            assert decoder.counts is not None
            listed, counts = decoder.pages.tolist(), decoder.counts.tolist()
            for row, r in enumerate(requests):
                k, v = said[layer, r].unbind(1)
                pages = [listed[row][h][: counts[row][h]] for h in range(heads)]
                judged = right(q[row].float(), k, v, decoder.budget)
                counted, error = unlike(QUEST, q[row], k, v, pages, out[row], judged, decoder.budget)
                odd, worst = odd + counted, max(worst, error)
    wrong = [f"{odd} pages that rounding does not explain"] if odd else []
    cache.free("b")
    return wrong + ([f"out by {worst:.1e}"] if not worst <= TOLERANCE["bf16"] else [])


def said_by(*words: str) -> tuple[int, str]:
    """The exit code and standard output of a command."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = vortex_command(list(words))
    return code, said.getvalue()


def traced(name: str, folder: Path, record: Callable[[Path], int], found: dict[str, Any]) -> Wrong:
    """What ``vortex trace`` says of the file that ``record`` writes: kernels have a time in each step."""
    file, page = folder / f"{name}.jsonl", folder / f"{name}.html"
    began = time.perf_counter()
    code = record(file)
    wrong = [f"{name}: exit {code}"] if code else []
    code, told = said_by("trace", str(file), "--json")
    wrong += [f"trace: exit {code}"] if code else []
    summary = json.loads(told)
    said_by("trace", str(file), "-o", str(page))
    if not 1000 < page.stat().st_size < 2_000_000:
        wrong.append(f"the page has {page.stat().st_size} bytes")
    steps = [line for line in read_page_trace(file)[1] if isinstance(line, StepTimes)]
    for step in steps:
        if not {*step.kernels} >= {"select", "attend"} or not all(x > 0 for x in step.kernels.values()):
            wrong.append(f"step {step.step}: kernels {step.kernels}")
        elif not sum(step.kernels.values()) < step.recorded:
            wrong.append(f"step {step.step}: kernels take {sum(step.kernels.values())} s of {step.recorded} s")
        if not step.unrecorded:
            wrong.append(f"step {step.step} has no time without recording")
    if not steps or figures_of(file).steps != len(steps):
        wrong.append(f"{len(steps)} steps have times")
    found["trace"][name] = {
        "steps": len(steps),
        "seconds": time.perf_counter() - began,
        **{key: summary[key] for key in ("trace", "kernels", "step_seconds", "overhead")},
    }
    return wrong


def run_trace(folder: Path, target: str, found: dict[str, Any], *, mass: bool) -> Wrong:
    path = artifact_for("quest", ModelShape(QUEST.spec, QUEST.kv_heads), target)
    words = ["run", str(path), "--target", target, "--kv-heads", "8", "--tokens", "5,500,2000", "--steps", "6"]
    words += ["--trace-mass"] * mass
    return traced(f"run{'_mass' * mass}", folder, lambda file: said_by(*words, "--trace", str(file))[0], found)


def eval_trace(folder: Path, files: Path, device: str, found: dict[str, Any]) -> Wrong:
    """As ``vortex eval --trace-pages`` records, of prompts at random: its tasks need packages that are not there."""
    model, made = load_model(str(files / "model"), device), random.Random(0)

    def record(file: Path) -> int:
        trace = PageTrace(file, model, Lane("quest", 4), "quest", "compiled")
        for index in range(2):
            tokens = tuple(made.randrange(100, 1000) for _ in range(1000))
            answer = tuple(made.randrange(100, 1000) for _ in range(12))
            trace.add(Prompt("random", 1000, index, tokens, (), "all", answer, ((40, 50),), 12), PromptCache(folder))
        return 0

    return traced("eval", folder, record, found)


class Batch:
    """Steps of a decoder of QUEST, all of a batch of one length."""

    def __init__(self, decoder: vortex.Decoder, device: str, batch: int = 8, tokens: int = 2000) -> None:
        spec, self.decoder, self.device = decoder.spec, decoder, device
        self.cache = vortex.PagedCache(batch * (tokens // 16 + 40), QUEST.kv_heads, spec, decoder.fields, device=device)
        decoder.bind(0, self.cache.k[0], self.cache.v[0], self.cache.fields[0])
        self.requests = range(batch)
        for r in self.requests:
            self.cache.add(r)
        dtype = torch.bfloat16
        self.q, self.out = (torch.randn(batch, QUEST.heads, spec.head_dim, device=device).to(dtype) for _ in range(2))
        self.prompt = torch.randn(2, batch * tokens, QUEST.kv_heads, spec.head_dim, device=device).to(dtype)
        self._append([tokens] * batch)

    def _append(self, lengths: list[int]) -> None:
        loc, row_offsets = self.cache.extend_batch(self.requests, lengths)
        self.lengths, self.table = self.cache.lengths(self.requests), self.cache.page_table(self.requests)
        k, v = (x[: len(loc)].contiguous() for x in self.prompt)
        self.given = k, v, loc, row_offsets
        self.decoder.plan(self.lengths, self.table)
        self.decoder.append(0, *self.given)

    def wait(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, steps: int) -> float:
        """Of a step: the same again, so that each has the same to do."""
        began = self.wait()
        for _ in range(steps):
            self.decoder.plan(self.lengths, self.table)
            self.decoder.append(0, *self.given)
            self.decoder.decode(0, self.q, out=self.out)
        return (self.wait() - began) / steps

    def ready(self) -> Batch:
        self._append([1] * len(self.requests))
        self.seconds(3)
        return self


def stopwatch(device: str, target: str, found: dict[str, Any]) -> Wrong:
    """Microseconds of a step, by a decoder that no stopwatch is in, twice to see the noise, by one whose stopwatch is
    off, and by the same where it is on; and what the profiler saw of the same kernels.
    """
    path = artifact_for("quest", ModelShape(QUEST.spec, QUEST.kv_heads), target)
    plain = vortex.load(path, target=target, budget=vortex.Budget(8))
    watch = Stopwatch(plain.library)
    libraries = {"none": plain.library, "none again": plain.library, "off": watch.library}
    made = {
        name: Batch(vortex.Decoder(library, budget=vortex.Budget(8)), device).ready()
        for name, library in libraries.items()
    }
    times: dict[str, list[float]] = {name: [] for name in (*made, "on")}
    steps, rounds = (20, 41) if device == "cuda" else (2, 5)
    kernels: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, batch in made.items():
            times[name].append(batch.seconds(steps) * 1e6)
        watch.on = True
        times["on"].append(made["off"].seconds(steps) * 1e6)
        watch.on = False
        for name, x in watch.read().items():
            kernels.setdefault(name, []).append(x / steps * 1e6)
    told: dict[str, Any] = {
        "batch": 8, "tokens": 2001, "steps": steps * rounds,
        "step_us": {name: statistics.median(x) for name, x in times.items()},
        "kernel_us": {name: statistics.median(x) for name, x in kernels.items()},
    }  # fmt: skip
    found["stopwatch"] = told
    wrong = [] if kernels and not watch.read() else ["the stopwatch measures while it is off, or not while it is on"]
    if not sum(told["kernel_us"].values()) < told["step_us"]["on"]:
        wrong.append("kernels take longer than the step")
    if device == "cuda":
        told["profiler_us"] = profiled(made["none"])
    return wrong


def profiled(batch: Batch) -> Mapping[str, float] | str:
    """Microseconds of the GPU in a step, by kernel."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            batch.seconds(20)
    except (RuntimeError, AssertionError) as error:
        return f"the profiler does not work here: {error}"
    return {e.key[:60]: e.self_device_time_total / 20 for e in profile.key_averages() if e.self_device_time_total}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True, help="what bench/stage_first_hour.py made")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device, folder = args.device, args.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    target = "cpu" if device == "cpu" else "sm_{}{}a".format(*torch.cuda.get_device_capability())
    found: dict[str, Any] = {
        "device": name, "date": time.strftime("%F %T"), "commit": args.commit, "torch": torch.__version__,
        "command": " ".join(["python3", *sys.argv]), "wrong": {}, "decode": {}, "trace": {},
    }  # fmt: skip
    began = time.time()
    checks = Checks(found, args.out)

    for case in CASES:
        checks.run(f"decode {case}", lambda c=case: decodes(c, args.files, device, found))
    checks.run("other calls", lambda: other_calls(device))
    checks.run("loop", lambda: loop(device, target))
    checks.run("stopwatch", lambda: stopwatch(device, target, found))
    checks.run("trace of vortex run", lambda: run_trace(folder, target, found, mass=False))
    checks.run("with mass", lambda: run_trace(folder, target, found, mass=True))
    checks.run("trace of vortex eval", lambda: eval_trace(folder, args.files, device, found))
    found["seconds"] = time.time() - began
    checks.write()
    print(json.dumps({n: found.get(n) for n in ("stopwatch", "trace", "seconds")}), flush=True)
    return int(any(found["wrong"].values()))


if __name__ == "__main__":
    sys.exit(main())

"""Decode throughput of SGLang's own model runner: a dense attention backend against this one, A B A B in one process.

Both backends share one ModelRunner: its weights, its KV pool and the requests in it; each has its own captured graphs.
Weights are drawn here from public model shapes, K and V are drawn on the device into shuffled pages and summarised by
the backend, as if prompts had been read; then each backend decodes in turn. Every segment asserts that the batch is
the one that was asked for and that each of its steps replayed a graph.

Runs where SGLang 0.5.16 imports and a GPU is (bench/parts/sglang.sh stages both); VORTEX_CONFIG names the artifact:

    VORTEX_CONFIG='{"flow": "quest.vxa", "budget": {"pages": 27}}' \\
      python3 bench/sglang_decode.py --model 1.7b --shapes 16x32768,1x32768 --out $OUT/sglang_1.7b.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

MODELS: dict[str, dict[str, int | bool]] = {
    "1.7b": dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, tied=True),
    "8b": dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, tied=False),
    "tiny": dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=16, tied=True),
}
"""Shapes of Qwen3; all have 8 KV heads of 128."""
PAGE = 16
OURS = ("plan", "append", "select", "attend")
DENSE = ("_fwd_", "flash", "prefill", "decode_attention", "paged")
"""Parts of the names of attention kernels."""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", choices=MODELS, default="1.7b")
    words.add_argument("--shapes", default="16x32768,1x32768", help="requests x tokens, comma-separated")
    words.add_argument("--dense", default="triton", help="SGLang's backend to compare with")
    words.add_argument("--steps", type=int, default=32, help="decode steps of a segment")
    words.add_argument("--rounds", type=int, default=3, help="segments of each backend")
    words.add_argument("--device", default="cuda", help="cpu tries the script, without graphs")
    words.add_argument("--out", type=Path, required=True)
    args = words.parse_args()
    shapes = [tuple(map(int, s.split("x"))) for s in args.shapes.split(",")]
    found: dict[str, Any] = {
        "about": about(args.device, f"{args.model} --shapes {args.shapes} --dense {args.dense}"),
        "rows": [],
    }
    bench = Bench(args, shapes)
    for batch, tokens in shapes:
        row = bench.row(batch, tokens)
        found["rows"].append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "kernels"}), flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")  # as it goes: a run that is cut off keeps its rows


def about(device: str, words: str) -> dict[str, Any]:
    """What every result of SGLang's benchmarks says of itself; ``words`` follow ``--model``."""
    from importlib.metadata import version

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "date": time.strftime("%Y-%m-%d"),
        "commit": os.environ.get("COMMIT", ""),
        "command": f"bench/{Path(sys.argv[0]).name} --model {words}",
        "config": os.environ.get("VORTEX_CONFIG", ""),
        "versions": {name: version(name) for name in ("sglang", "torch", "triton")},
    }


def write_model(name: str, folder: Path, longest: int) -> None:
    """A config and a tokenizer of words; the weights are drawn on the device."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    shape = dict(MODELS[name])
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 8,
        "vocab_size": 151936 if name != "tiny" else 1024, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1000000, "max_position_embeddings": longest, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2, "attention_bias": False, "tie_word_embeddings": shape.pop("tied"),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | shape))
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(1000)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0").save_pretrained(folder)


class Bench:
    """One model runner with two attention backends, each with its graphs."""

    def __init__(self, args: argparse.Namespace, shapes: list[tuple[int, ...]]) -> None:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.benchmark import one_batch
        from sglang.srt.entrypoints.engine import _set_envs_and_config
        from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
        from sglang.srt.layers.moe import initialize_moe_config
        from sglang.srt.server_args import PortArgs, ServerArgs

        self.args, self.lib = args, one_batch
        extra = args.steps * args.rounds * 2 + 64  # every segment adds its tokens
        longest = max(tokens for _, tokens in shapes) + extra
        most = max(batch * (tokens + extra + PAGE) for batch, tokens in shapes)
        folder = Path(tempfile.mkdtemp())
        write_model(args.model, folder, longest + 64)
        sizes = sorted({batch for batch, _ in shapes})
        graphs = {"disable_cuda_graph": True} if args.device == "cpu" else {"cuda_graph_bs_decode": sizes}
        settings = ServerArgs(
            model_path=str(folder), load_format="dummy", attention_backend="vortex", page_size=PAGE,
            device=args.device, dtype="bfloat16", max_total_tokens=-(-most // PAGE) * PAGE + 1024,
            max_running_requests=max(sizes), context_length=longest + 64, sampling_backend="pytorch",
            grammar_backend="none", mem_fraction_static=0.85, disable_prefill_cuda_graph=True, **graphs,
        )  # fmt: skip
        _set_envs_and_config(settings)
        initialize_moe_config(settings)
        wrapped, _ = one_batch.load_model(settings, PortArgs.init_new(settings), 0, 0)
        runner = self.runner = wrapped.torch_runner
        self._draw_weights()
        self.ours = runner.attn_backend
        self.backends = {"vortex": (self.ours, runner.decode_cuda_graph_runner)}
        dense = ATTENTION_BACKENDS[args.dense](runner)
        runner.attn_backend = runner.decode_attn_backend = dense
        runner.init_decode_cuda_graph()
        self.backends[args.dense] = (dense, runner.decode_cuda_graph_runner)

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """SGLang's dummy weights are so small that attention is uniform."""
        for name, weight in self.runner.model.named_parameters():
            if weight.dim() < 2:
                weight.fill_(1.0) if "norm" in name else weight.zero_()
            else:
                weight.normal_(0, weight.shape[-1] ** -0.5)

    def use(self, name: str) -> None:
        backend, graphs = self.backends[name]
        self.runner.attn_backend = self.runner.decode_attn_backend = backend
        self.runner.decode_cuda_graph_runner = graphs

    def start(self, batch: int, tokens: int) -> tuple[Any, torch.Tensor]:
        """Requests whose K and V are drawn on the device, in pages that lie anywhere in the pool."""
        from sglang.srt.managers.schedule_batch import ScheduleBatch
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        runner, lib = self.runner, self.lib
        runner.req_to_token_pool.clear()
        allocator = runner.token_to_kv_pool_allocator
        allocator.clear()
        allocator.free_pages = allocator.free_pages[torch.randperm(len(allocator.free_pages), device=runner.device)]
        reqs = lib.prepare_synthetic_inputs_for_latency_test(batch, tokens)
        tree = lib.TreeCacheNamespace(page_size=PAGE, device=runner.device, token_to_kv_pool_allocator=allocator)
        made = ScheduleBatch.init_new(
            reqs=reqs, req_to_token_pool=runner.req_to_token_pool, token_to_kv_pool_allocator=allocator,
            tree_cache=tree, model_config=runner.model_config, enable_overlap=False,
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )  # fmt: skip
        made.prepare_for_extend()
        pool = runner.token_to_kv_pool
        for buffer in (*pool.k_buffer, *pool.v_buffer):
            buffer.normal_()
        self.summarise(made, tokens)
        return made, torch.randint(0, 900, (batch,), device=runner.device)

    def summarise(self, batch: Any, tokens: int) -> None:
        """Summaries of the pages that the last ``tokens`` tokens of each request filled behind the backend's back."""
        step = self.ours._eager
        step.begin(batch.req_pool_indices.to(self.runner.device), batch.seq_lens.to(self.runner.device))
        step.plan_fill(torch.full((len(batch.reqs),), tokens, device=self.runner.device))
        hint = torch.zeros(len(batch.reqs) * tokens, dtype=torch.int64, device=self.runner.device)
        for layer in self.ours._layers:
            step.fill(layer, hint)

    @contextmanager
    def counted(self, name: str) -> Iterator[list[int]]:
        """Counts replays of a backend's graphs."""
        graphs, seen = self.backends[name][1], [0]
        if graphs is None:
            yield seen
            return
        execute = graphs.execute

        def counting(*words: Any, **more: Any) -> Any:
            seen[0] += 1
            return execute(*words, **more)

        graphs.execute = counting
        try:
            yield seen
        finally:
            graphs.execute = execute

    def segment(self, name: str, batch: Any, ids: torch.Tensor, steps: int) -> tuple[float, torch.Tensor]:
        """Milliseconds a step, and the next tokens."""
        self.use(name)
        size, before = len(batch.reqs), int(batch.seq_lens_cpu[0])
        self._sync()
        with self.counted(name) as replays:
            began = time.perf_counter()
            for _ in range(steps):
                ids, _ = self.lib.decode(ids, batch, self.runner)
            self._sync()
            took = time.perf_counter() - began
        assert ids.shape[0] == size == batch.batch_size(), f"{ids.shape[0]} of {size} requests decoded"
        assert int(batch.seq_lens_cpu[0]) == before + steps, "the batch did not grow by a token a step"
        if self.args.device == "cuda":
            assert replays[0] == steps, f"{replays[0]} of {steps} steps replayed a graph"
        if name != "vortex":
            self.summarise(batch, steps)
        return took / steps * 1e3, ids

    def row(self, size: int, tokens: int) -> dict[str, Any]:
        batch, ids = self.start(size, tokens)
        assert len(batch.reqs) == size
        made: dict[str, Any] = {"batch": size, "tokens": tokens, "ms": {n: [] for n in self.backends}, "kernels": {}}
        for name in self.backends:
            _, ids = self.segment(name, batch, ids, 4)
        for _ in range(self.args.rounds):
            for name in self.backends:
                took, ids = self.segment(name, batch, ids, self.args.steps)
                made["ms"][name].append(round(took, 4))
        step = {name: statistics.median(times) for name, times in made["ms"].items()}
        made["tokens_per_s"] = {name: round(size / ms * 1e3, 1) for name, ms in step.items()}
        made["speedup"] = round(step[self.args.dense] / step["vortex"], 3)
        if self.args.device == "cuda":
            made["split_ms"] = {}
            for name in self.backends:
                made["split_ms"][name], made["kernels"][name], ids = self.split(name, batch, ids, step[name])
        return made

    def split(self, name: str, batch: Any, ids: torch.Tensor, step: float) -> tuple[Any, Any, torch.Tensor]:
        """A step's time on attention kernels, on others, and without any: what the host made the GPU wait for."""
        from torch.profiler import ProfilerActivity, profile

        steps = 4
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            _, ids = self.segment(name, batch, ids, steps)
        times = {e.key: e.self_device_time_total / steps / 1e3 for e in seen.key_averages()}
        parts = OURS if name == "vortex" else DENSE
        attention = sum(t for key, t in times.items() if any(p in key for p in parts))
        # the summaries that follow a dense segment are counted here as well: they are not decoding
        others = sum(t for key, t in times.items() if not any(p in key for p in (*parts, *OURS)))
        top = dict(sorted(times.items(), key=lambda item: -item[1])[:12])
        shares = {"attention": attention, "other": others, "host": max(0.0, step - attention - others)}
        return {k: round(v, 4) for k, v in shares.items()}, {k: round(v, 4) for k, v in top.items()}, ids

    def _sync(self) -> None:
        if self.args.device == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()

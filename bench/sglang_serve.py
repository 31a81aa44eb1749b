"""SGLang's whole server, started by its command line and asked over HTTP: answers checked, then served at load.

Parts, each under a limit of its own; the checks run side by side on one GPU, the figures alone:

* ``tokens``: a small Qwen3. With every page read the answers are those of SGLang's dense backend, at once, from the
  cache, one by one, in chunks and with mixed chunks; with few pages those of a simulation in plain torch.
* ``fp8``: the same of K and V in fp8_e4m3 with the scales of a checkpoint, by a simulation that keeps them so; beside
  it, as ``f16``, the same weights with K and V in 16 bits.
* ``smollm2``: the same of a real model, and the number in its prompt found with 64 pages (where its weights are).
* ``churn``: 500 requests that join, leave, are aborted and lose their memory in a small pool: nothing is lost, and each
  says what a simulation says that is told where it was retracted.
* ``latent``: a DeepSeek V2 with the latent rows of V2-Lite (MLA): as ``tokens``, without chunks that are not mixed;
  ``latent_fp8`` the same with rows in fp8_e4m3, beside a dense backend that has them, too.
* ``full``: mixed chunks in a pool that running requests fill while a prompt is being read: how a server ends, dense and
  sparse, and that without mixed chunks none does.
* ``hicache``: what was saved, evicted and loaded back says the same again.
* ``figures``: SGLang's own bench_serving against the shape of Qwen3-1.7B (or 8B: ``--wave 8b/quest=8x32768``). Servers
  of a ``--wave`` start side by side and are asked in turn, alone. ``quest+fa3`` is a flow whose prompts FA3 reads, and
  the dense ones are ``triton``, ``fa3``, ``flashinfer`` and ``flashinfer_tc`` (where these are staged).

In 16 bits two dense runs differ as well, so ``as_dense`` has the dense backend against itself as its control, and tells
how near the next best token came where answers part. ``as_simulated`` takes each token by itself: how far its logit is
below the best in the simulation, given what was said before it. ``by_all_pages`` asks a simulation that reads every
page, which answers from few pages must not please. Where few pages are read, 16 bits choose other pages at near ties:
of a simulation in f16 the one in f32 finds 111 of 160 tokens best, 5 where it reads all pages (with every page read by
both, 156). Runs where SGLang 0.5.16 or 0.5.23 imports
(bench/parts/serve.sh stages it):

    python3 bench/sglang_serve.py --artifacts .gpu/serve --out $OUT/serve.json tokens churn
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "tests" / "engine"
sys.path[:0] = [str(ROOT), str(ENGINE)]

PAGE, TOKENS = 16, 40
LENGTHS = (150, 163, 176, 189, 300, 420, 555, 700)
FLOWS = dict.fromkeys(("tiny", "scaled", "smollm2"), "quest") | dict.fromkeys(("latent", "latent_fp8"), "latent_topk")
"""Artifact -> the flow that it is made of, which a CPU compiles by itself."""
TIE = {"float16": 0.1, "float32": 1e-4}
"""Answers may part where the next best token was this near, in nats of the dense backend."""
REGRET = {"float16": 0.5, "float32": 1e-3}
"""Logits that a token may be below the simulation's best; the small models' logits have a deviation of 8."""
Loads = list[tuple[int, int]]
"""Requests at once and the tokens of each one's prompt."""
LOADS = [f"{name}=16x32768,16x16384" for name in ("triton", "quest", "quest_then_mass")]
DENSE: dict[str, dict[str, str]] = {
    "triton": {}, "fa3": {}, "flashinfer": {}, "flashinfer_tc": {"SGLANG_FLASHINFER_USE_TENSOR_CORE": "true"},
}  # fmt: skip
"""Dense backends of the figures, and what their servers' environment says; what ends in ``_tc`` decodes with tensor
cores, where FlashInfer takes CUDA cores by itself (for fewer than four heads a KV head).
"""
QWEN: dict[str, dict[str, Any]] = {
    "1.7b": dict(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, head_dim=128,
        tie_word_embeddings=True,
    ),
    "8b": dict(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, head_dim=128,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
SMALL: dict[str, Any] = dict(
    hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=16, head_dim=32,
    tie_word_embeddings=True,
)  # fmt: skip


CHURN = ["chunks", "mixed-chunks", "dense-chunks", "dense-mixed-chunks"]
FULL = ["dense", "dense-mixed", "sparse", "sparse-mixed"]
STARTS = {
    "server_args=": "arguments", "Init parallel begin": "worker", "Load weight end": "weights",
    "Memory pool end": "pools", "Engine startup timings": "graphs", "fired up": "first answer",
}  # fmt: skip
"""What a server's log says on its way up, and what is done by then."""


class Report:
    """Rows as they come, in a file that is whole at any time."""

    def __init__(self, args: argparse.Namespace) -> None:
        from sglang_decode import about

        said = about(args.device, args.dtype)
        words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
        said["command"] = " ".join(["bench/sglang_serve.py", *words])
        self.path, self.found = args.out, {"about": said, "rows": []}
        self.lock, self.began = threading.Lock(), time.monotonic()

    def add(self, part: str, **row: Any) -> None:
        with self.lock:
            self.found["rows"].append({"part": part, "at_s": round(time.monotonic() - self.began, 1)} | row)
            print(json.dumps(self.found["rows"][-1])[:1500], flush=True)
            self.path.write_text(json.dumps(self.found, indent=1) + "\n")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)


class Server:
    """One server and a client of its; ``async_generate`` and ``flush_cache`` are what tests/engine/traffic.py asks."""

    def __init__(self, address: str, log: Path, mixes: bool = False) -> None:
        self.address, self.log, self.mixes = address, log, mixes
        self.tokenizer_manager = self

    def ask(self, path: str, body: Any = None, timeout: float = 300) -> Any:
        head = {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.address}{path}", data, head), timeout=timeout
        ) as got:
            text = got.read().decode()
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text)
        return text

    def one(self, prompt: list[int], tokens: int, **more: Any) -> dict[str, Any]:
        """An answer with the gap between the two best tokens at each step, unless the server is to mix chunks: SGLang
        mixes nothing while a request wants log-probabilities.
        """
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True} | more
        body: dict[str, Any] = {"input_ids": prompt, "sampling_params": sampling}
        if not self.mixes:
            body |= {"return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": 2}
        made = self.ask("/generate", body)
        about = made["meta_info"]
        if self.mixes:
            return {"ids": made["output_ids"], "gaps": [], "cached": about.get("cached_tokens", 0)}
        best = [[entry[0] for entry in step] for step in about["output_top_logprobs"]]
        ids = [entry[1] for entry in about["output_token_logprobs"]]
        return {"ids": ids, "gaps": [b[0] - b[1] for b in best], "cached": about.get("cached_tokens", 0)}

    def all(self, prompts: Sequence[list[int]], tokens: int, at_once: bool = True, **more: Any) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(len(prompts) if at_once else 1) as threads:
            return list(threads.map(lambda p: self.one(p, tokens, **more), prompts))

    def flush(self) -> None:
        for _ in range(100):
            try:
                self.ask("/flush_cache", {})
                return
            except OSError:
                time.sleep(0.1)

    async def async_generate(self, input_ids: list[int], sampling_params: Any, stream: bool, rid: str) -> Any:
        body = {"input_ids": input_ids, "sampling_params": sampling_params, "stream": stream, "rid": rid}
        return self._parts(body)

    async def _parts(self, body: dict[str, Any]) -> AsyncIterator[Any]:
        async with self.session.post(f"{self.address}/generate", json=body) as answer:
            async for line in answer.content:
                text = line.decode().removeprefix("data:").strip()
                if text and text != "[DONE]":
                    part = json.loads(text)
                    if "error" in part:
                        raise RuntimeError(text)
                    yield part

    def abort_request(self, rid: str) -> None:
        self.aborts.append(asyncio.ensure_future(self._abort(rid)))

    async def _abort(self, rid: str) -> None:
        async with self.session.post(f"{self.address}/abort_request", json={"rid": rid}) as answer:
            await answer.read()

    async def flush_cache(self) -> Any:
        async with self.session.post(f"{self.address}/flush_cache") as answer:
            return argparse.Namespace(success=answer.status == 200)

    async def traffic(self, requests: list[dict[str, Any]], at_once: int) -> dict[str, Any]:
        import aiohttp
        from traffic import serve

        self.aborts: list[Any] = []
        limits = {"timeout": aiohttp.ClientTimeout(total=None), "connector": aiohttp.TCPConnector(limit=0)}
        async with aiohttp.ClientSession(**limits, read_bufsize=2**20) as self.session:
            done = await serve(self, requests, at_once)
            await asyncio.gather(*self.aborts)
        return done

    def graphs(self) -> dict[str, int]:
        """How many of the log's lines on decoding say that a CUDA graph ran, and that none did."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if "Decode batch" in line]
        graph = sum("cuda graph: True" in line for line in lines)
        return {"replayed": graph, "eager": len(lines) - graph}


class Bench:
    """The parts. Each method named in PARTS is one, and adds its rows to the report."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.report = args, Report(args)
        self.cpu = args.device == "cpu"
        self.folder = Path(tempfile.mkdtemp(prefix="serve-"))
        self.logs = args.out.parent
        self.processes: set[int] = set()
        self.gate = threading.Semaphore(args.side_by_side)
        self.pools: dict[Path, Any] = {}
        self.pools_lock = threading.Lock()
        self.dense = "torch_native" if self.cpu else "triton"

    def flow(self, name: str) -> str:
        return FLOWS.get(name, "quest") if self.cpu else str(self.args.artifacts / f"{name}.vxa")

    def model(self, kind: str) -> Path:
        """A small model of a kind of tests/engine/weights.py; latent rows are V2-Lite's."""
        import weights

        folder = self.folder / kind
        if not folder.exists():
            plain = kind in ("calm", "scaled")
            make = weights.plain if plain else weights.grouped if kind == "grouped" else lambda: latent(weights)
            weights.write_model(folder, make, calm=plain or kind == "calm_latent")
            weights.write_tokenizer(folder)
            if self.args.dtype == "float16":
                self._round(folder / "model.safetensors")
            if kind == "scaled":
                weights.add_scales(folder)
        return folder

    @staticmethod
    def _round(path: Path) -> None:
        """Weights of 16 bits, so that the simulation, which computes in 32, has the same."""
        from safetensors.torch import load_file, save_file

        save_file({key: value.half() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})

    @contextlib.contextmanager
    def server(
        self, name: str, model: Path, config: dict[str, Any] | None, witness: Path | None = None, **settings: Any
    ) -> Iterator[Server]:
        """Started by the command line; ``config`` of None is the dense backend."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        prompt_graphs = "breakable" if self.args.prefill_graphs else "disabled"
        plain = {
            "model_path": model, "port": port, "device": self.args.device, "dtype": self.args.dtype,
            "attention_backend": self.dense if config is None else "vortex", "page_size": PAGE,
            "grammar_backend": "none", "sampling_backend": "pytorch", "max_total_tokens": 16384,
            "max_running_requests": 16, "context_length": 4096, "mem_fraction_static": 0.3, "random_seed": 0,
            "decode_log_interval": 10, "cuda_graph_backend_prefill": prompt_graphs,
            "watchdog_timeout": 300, "skip_tokenizer_init": True,
        }  # fmt: skip
        if self.cpu:
            plain["disable_cuda_graph"] = True
        else:
            plain["cuda_graph_bs_decode"] = [1, 2, 4, 8, 16]
        words = [sys.executable, "-m", "sglang.launch_server"]
        if config is not None:
            words += ["--vortex-config", json.dumps(config)]
        for key, value in (plain | settings).items():
            if value is not False:
                values = value if isinstance(value, list) else [] if value is True else [value]
                words += [f"--{key.replace('_', '-')}", *map(str, values)]
        environment = {k: v for k, v in os.environ.items() if k != "VORTEX_CONFIG"}
        plugins = [ENGINE / "witness"] if witness else []
        if self.cpu and "kv_cache_dtype" in settings:
            plugins.append(ENGINE / "gpupools")
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, plugins), environment.get("PYTHONPATH", "")])
        if witness:
            environment["WITNESS"] = str(witness)
        environment |= settings_environment(name)
        if "flashinfer" in name:
            environment |= self.flashinfer(environment["PYTHONPATH"])
        path = self.folder / f"{name}.log"
        self.gate.acquire()
        began, started = time.monotonic(), time.time()
        with path.open("w") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self.processes.add(process.pid)
        try:
            address = f"http://127.0.0.1:{port}"
            self._wait(process, address, began + self.args.start_seconds)
            self.report.say(f"{name}: up after {time.monotonic() - began:.0f} s: {_start(path, started)}")
            yield Server(address, path, bool(settings.get("enable_mixed_chunk")))
        except BaseException:
            self._keep(name, path, process)
            raise
        finally:
            self._end(process.pid)
            process.wait()
            self.gate.release()

    def flashinfer(self, path: str) -> dict[str, str]:
        """What lets a server import FlashInfer instead of its stub, and keeps that from compiling."""
        folder = self.args.flashinfer
        return {
            "PYTHONPATH": f"{folder}{os.pathsep}{path}" if folder else path, "SGLANG_IS_FLASHINFER_AVAILABLE": "true",
            "FLASHINFER_WORKSPACE_BASE": str(self.folder / "flashinfer"), "FLASHINFER_DISABLE_JIT": "1",
        }  # fmt: skip

    def _end(self, pid: int) -> None:
        self.processes.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def stop(self, *_: Any) -> None:
        """At the end of the time: servers are in sessions of their own, and would keep the GPU's memory."""
        self.report.say("out of time")
        for pid in list(self.processes):
            self._end(pid)
        os._exit(124)

    def _wait(self, process: subprocess.Popen[bytes], address: str, late: float) -> None:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                return
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}")
            if time.monotonic() > late:
                raise TimeoutError(f"no server after {self.args.start_seconds} s")
            time.sleep(0.5)

    def _keep(self, name: str, path: Path, process: subprocess.Popen[bytes]) -> None:
        """The end of a log into the one file of logs that comes back, and less of it to the screen."""
        lines = path.read_text(errors="replace").splitlines()
        with self.report.lock, (self.logs / "serve_failed.log").open("a") as all_logs:
            all_logs.write(f"==== {name}, status {process.poll()}\n" + "\n".join(lines[-250:]) + "\n")
        self.report.say(f"{name} failed; the end of its log:\n" + "\n".join(line[:300] for line in lines[-25:]))

    def simulate(self, model: Path, asked: list[dict[str, Any]]) -> list[list[float]]:
        """Regrets of each of ``asked``: arguments of Simulation, prompt, answer and restarts. The processes stay."""
        if not asked:
            return []
        with self.pools_lock:
            if model not in self.pools:
                count = 1 if self.cpu else max(1, (os.cpu_count() or 2) // 2 - 1)
                self.pools[model] = multiprocessing.get_context("spawn").Pool(count, _load, (str(model),))
        return self.pools[model].map(_regrets, asked, chunksize=1)

    # parts ---------------------------------------------------------------------------------------------------------

    def tokens(self) -> None:
        from harness import prompts

        asked, model = prompts(1, LENGTHS), self.model("grouped")
        everything = {"flow": self.flow("tiny"), "budget": {"pages": 100000}}
        few = {"flow": self.flow("tiny"), "budget": {"pages": 3}}
        chunks = {"chunked_prefill_size": 128}
        mixed = chunks | {"enable_mixed_chunk": True}
        self.compared("tokens", model, asked, {
            "dense": (None, {}),
            "dense, mixed chunks": (None, mixed),
            "all pages": (everything, {}),
            "all pages, chunks": (everything, chunks),
            "all pages, mixed chunks": (everything, mixed),
            "3 pages": (few, {}),
            "3 pages, mixed chunks": (few, mixed),
        })  # fmt: skip

    def smollm2(self) -> None:
        from vortex.evaluate.models import model_folder

        asked = json.loads((self.args.artifacts / "needles.json").read_text())
        model = model_folder("smollm2")
        prompts, length = [one["tokens"] for one in asked], max(len(one["answer"]) for one in asked) + 24
        room = {"max_total_tokens": 65536, "context_length": 4096}
        config = {"flow": self.flow("smollm2"), "budget": {"pages": 64}, "per_request": {"pages": 1000}}
        most = {"custom_params": {"vortex": {"pages": 1000}}}
        dense: list[dict[str, Any]] = []
        found: list[tuple[str, list[dict[str, Any]], dict[str, int]]] = []

        def ask(name: str) -> None:
            chosen = None if name == "dense" else config
            with self.attempt("smollm2", name), self.server(f"smollm2-{name}", model, chosen, **room) as server:
                if chosen is None:
                    dense.extend(self.control("smollm2", server, prompts, length))
                    found.append(("dense", dense, server.graphs()))
                    return
                for label, more, at_once in (
                    ("all pages, by request", most, True),
                    ("all pages, cached", most, True),
                    ("all pages, one by one", most, False),
                    ("64 pages", {}, True),
                ):
                    found.append((label, server.all(prompts, length, at_once, **more), server.graphs()))

        together(ask, ["dense", "vortex"])
        for label, said, graphs in found:
            right = sum(s["ids"][: len(a["answer"])] == a["answer"] for s, a in zip(said, asked, strict=True))
            self.report.add(
                "smollm2", name=label, as_dense=self.agree(said, dense) if dense else None,
                needles=f"{right} of {len(asked)}", cached=sum(one["cached"] for one in said), graphs=graphs,
            )  # fmt: skip

    def fp8(self) -> None:
        from harness import prompts
        from weights import SCALES

        asked = prompts(1, LENGTHS)
        if self.args.dtype == "float32":
            raise SystemExit("K and V in fp8 need a model in 16 bits: --dtype float16")

        def ask(part: str) -> None:
            kind, artifact = ("scaled", "scaled") if part == "fp8" else ("calm", "tiny")
            few = {"flow": self.flow(artifact), "budget": {"pages": 3}}
            servers: dict[str, tuple[dict[str, Any] | None, Any]] = {"dense": (None, {}), "3 pages": (few, {})}
            if part == "f16":
                self.compared(part, self.model(kind), asked, servers)
                return
            if self.cpu:
                del servers["dense"]  # SGLang's torch_native knows no scales
            servers["all pages"] = {"flow": self.flow(artifact), "budget": {"pages": 100000}}, {}
            stored = {name: (config, {"kv_cache_dtype": "fp8_e4m3"}) for name, (config, _) in servers.items()}
            self.compared(part, self.model(kind), asked, stored, {"scales": SCALES, "triton": not self.cpu}, {
                "by_no_scales": {"scales": [(1.0, 1.0)] * len(SCALES)},
                "by_f16": {"scales": ()},
                "by_rows_of_the_pool": {"triton": False},
            })  # fmt: skip

        together(ask, ["fp8", "f16"])

    def full(self) -> None:
        config = {"flow": self.flow("tiny"), "budget": {"pages": 2}}

        def serve(name: str) -> None:
            dense, mixed = name.startswith("dense"), "mixed" in name
            settings = {"max_total_tokens": 1888, "chunked_prefill_size": 32, "enable_mixed_chunk": mixed}
            label = _label("full", name)
            with (
                self.attempt("full", name),
                self.server(label, self.model("grouped"), None if dense else config, **settings) as server,
            ):
                ended = self.fill(server)
                why = [line for line in server.log.read_text(errors="replace").splitlines() if "out of memory" in line]
                self.report.add("full", name=name, ended=ended, why=why[-1][:200] if why else "")

        together(serve, self.args.full)

    def fill(self, server: Server) -> dict[str, Any]:
        """How many of the requests got their answers whole.

        The first four have three pages each when the prompt of 94 comes, which the pool of 118 has room for; they grow
        while it is read, where chunks are mixed.
        """
        draw = random.Random(1)
        sizes = [(40, 66)] * 4 + [(1500, 2)]
        body = {
            "input_ids": [[draw.randrange(5, 1000) for _ in range(tokens)] for tokens, _ in sizes],
            # to requests that would not end early SGLang grants all that they may say
            "sampling_params": [{"temperature": 0, "max_new_tokens": new} for _, new in sizes],
        }
        whole, reasons = 0, Counter[str]()
        with contextlib.suppress(OSError, http.client.HTTPException):
            made = server.ask("/generate", body, 120)
            whole = sum(len(one["output_ids"]) == new for one, (_, new) in zip(made, sizes, strict=True))
            reasons.update(str((one["meta_info"].get("finish_reason") or {}).get("type")) for one in made)
        return {"whole": whole, "of": len(sizes), "finished": dict(reasons)}

    def latent(self) -> None:
        from harness import prompts

        asked, model = prompts(1, LENGTHS), self.model("latent")
        everything = {"flow": self.flow("latent"), "budget": {"pages": 100000}}
        few = {"flow": self.flow("latent"), "budget": {"pages": 3}}
        mixed = {"chunked_prefill_size": 128, "enable_mixed_chunk": True}
        self.compared("latent", model, asked, {
            "dense": (None, {}),
            "dense, mixed chunks": (None, mixed),
            "all pages": (everything, {}),
            "all pages, mixed chunks": (everything, mixed),
            "3 pages": (few, {}),
        })  # fmt: skip

    def latent_fp8(self) -> None:
        from harness import prompts

        # in others an error of rounding grows from layer to layer, and two right answers have little in common
        asked, model, narrow = prompts(1, LENGTHS), self.model("calm_latent"), {"kv_cache_dtype": "fp8_e4m3"}
        flow = self.flow("latent_fp8")
        self.compared("latent_fp8", model, asked, {
            "dense": (None, narrow),
            "all pages": ({"flow": flow, "budget": {"pages": 100000}}, narrow),
            "3 pages": ({"flow": flow, "budget": {"pages": 3}}, narrow),
        }, {"narrow_rope": 64, "triton": not self.cpu}, {
            "by_whole_rows": {"narrow_rope": 0},
            "by_rows_of_the_pool": {"triton": False},
        })  # fmt: skip

    def churn(self) -> None:
        from tests.engine import test_churn as churn

        churn.REQUESTS = self.args.requests
        asked, model, scale = churn.requests(1), self.model("grouped"), 1 if self.cpu else 2
        config = {"flow": self.flow("tiny"), "budget": {"pages": churn.PAGES}}

        def serve(name: str) -> None:
            label, mixed, dense = _label("churn", name), "mixed" in name, name.startswith("dense")
            witness = self.folder / f"{label}.jsonl"
            settings = {"max_total_tokens": 768 * scale, "chunked_prefill_size": 64, "enable_mixed_chunk": mixed}
            with self.attempt("churn", name):
                with self.server(label, model, None if dense else config, witness, **settings) as server:
                    began = time.monotonic()
                    done = asyncio.run(server.traffic(asked, 14 * scale))
                    took, graphs = time.monotonic() - began, server.graphs()
                seen = [json.loads(line) for line in witness.read_text().splitlines()]
                row = self.churned(churn, model, asked, done, seen, None if dense else churn.PAGES)
                self.report.add("churn", name=name, requests=len(asked), seconds=round(took, 1), graphs=graphs, **row)

        together(serve, self.args.churn)

    def churned(
        self, churn: Any, model: Path, asked: Any, done: Any, seen: list[dict[str, Any]], pages: int | None
    ) -> dict[str, Any]:
        """As tests/engine/test_churn.py compares, with the numbers that it asserts."""
        lives, compared = churn.history(seen), []
        count: Counter[str] = Counter(evictions=sum(bool(line.get("evicted")) for line in seen))
        count["mixed"] = sum("mixed" in line for line in seen)
        short = []
        for one in asked:
            got, mine = done[one["rid"]], lives.get(one["rid"], [])
            count["aborted"] += got["end"] == "abort"
            if got["end"] not in ("abort", "stop") and len(got["ids"]) != one["tokens"]:
                short.append(one["rid"])
            dense = churn.read_densely(one, done, mine)
            if not all(life["hit"] <= d for life, d in zip(mine, dense, strict=True)):
                count["on another's answer"] += 1
            elif got["ids"]:
                restarts = [life["said"] for life in mine[1:]]
                count["retracted"] += bool(restarts)
                count["restarts"] += len(restarts)
                alone = {"flow": "quest", "pages": pages, "prompt": got["prompt"], "answer": got["ids"]}
                compared.append(alone | {"restarts": restarts})
        kept, empty = [line for line in seen if "size" in line][-2:]
        lost = {
            "all_free_or_cached": kept["free"] + kept["cached"] == kept["size"],
            "all_free_when_flushed": empty["free"] == empty["size"],
            "none_locked": kept["locked"] == 0,
            "rows_free": kept["rows"] == kept["of"],
        }
        count["compared"] = len(compared)
        return {"count": dict(count), "short": short, "nothing_lost": lost, "as_simulated": self.judge(model, compared)}

    def hicache(self) -> None:
        from harness import prompts

        first, other = prompts(3), prompts(7)
        asked = (first, other, first, other, first)
        back = {
            "enable_hierarchical_cache": True, "hicache_ratio": 4, "hicache_io_backend": "direct",
            "hicache_mem_layout": "layer_first", "max_total_tokens": 1024, "max_running_requests": 8,
        }  # fmt: skip

        def ask(name: str) -> None:
            kind, artifact = ("latent", "latent") if name.startswith("MLA") else ("grouped", "tiny")
            settings = {} if "control" in name else back
            label, model = _label("hicache", name), self.model(kind)
            witness = self.folder / f"{label}.jsonl"
            config = {"flow": self.flow(artifact), "budget": {"pages": 3}}
            with self.attempt("hicache", name):
                with self.server(label, model, config, witness, **settings) as server:
                    passes = [server.all(one, TOKENS) for one in asked]
                    row: dict[str, Any] = {"graphs": server.graphs()}
                seen = [json.loads(line) for line in witness.read_text().splitlines()]
                row["loaded_back"] = sum(line["loaded"] for line in seen if "loaded" in line)
                row["cached"] = [sum(one["cached"] for one in said) for said in passes]
                row["again_as_first"] = [self.agree(passes[i], passes[i % 2]) for i in (2, 3, 4)]
                row["as_simulated"] = [
                    self.judge(model, [
                        {"flow": FLOWS[artifact], "pages": 3, "prompt": p, "answer": s["ids"]}
                        for p, s in zip(one, said, strict=True)
                    ])
                    for one, said in zip(asked, passes, strict=True)
                ]  # fmt: skip
                self.report.add("hicache", name=name, **row)

        together(ask, ["loaded back", "control: a pool for all", "MLA, loaded back", "MLA, control: a pool for all"])

    def figures(self) -> None:
        from sglang.benchmark import serving  # type: ignore[import-not-found,unused-ignore]

        names = {name for wave in self.args.wave for name in wave}
        longest = max(tokens for wave in self.args.wave for loads in wave.values() for _, tokens in loads)
        models = {which: self.qwen(which, longest + self.args.new + 64) for which in sorted({*map(_model_of, names)})}
        for wave in self.args.wave:
            up, turns = threading.Barrier(len(wave)), {name: threading.Event() for name in wave}

            def ask(name: str, wave: Any = wave, up: Any = up, turns: Any = turns) -> None:
                earlier = list(turns.values())[: list(turns).index(name)]
                waited = False
                with self.attempt("figures", name):
                    try:
                        model = models[_model_of(name)]
                        with self.loaded(name, model, wave[name]) as server:
                            waited = True
                            up.wait()
                            for turn in earlier:
                                turn.wait()
                            self.measure(serving, server, model, name, wave[name])
                    finally:
                        turns[name].set()
                        if not waited:
                            up.wait()

            together(ask, wave)

    def loaded(self, name: str, model: Path, loads: Loads) -> contextlib.AbstractContextManager[Server]:
        """A server, dense or of a flow, with room for the largest of ``loads``."""
        settings: dict[str, Any] = {
            "max_total_tokens": max(batch * (tokens + self.args.new + 2 * PAGE) for batch, tokens in loads),
            "max_running_requests": max(batch for batch, _ in loads), "skip_tokenizer_init": False,
            "context_length": max(tokens for _, tokens in loads) + self.args.new + 64, "mem_fraction_static": 0.95,
            "dtype": "bfloat16", "decode_log_interval": 100, "chunked_prefill_size": 8192,
        }  # fmt: skip
        which, by = _model_of(name), name.rpartition("/")[2]
        label = f"figures-{name.replace('/', '-').replace('+', '-')}"
        if by in DENSE:
            backend = self.dense if self.cpu else by.removesuffix("_tc")
            return self.server(label, model, None, attention_backend=backend, **settings)
        by, plus, prefill = by.partition("+")
        flow = "quest" if self.cpu else str(self.args.artifacts / f"{which}_{by}.vxa")
        config = {"flow": flow, "budget": {"pages": 27}} | ({"prefill_backend": prefill} if plus else {})
        return self.server(label, model, config, **settings)

    def measure(self, serving: Any, server: Server, model: Path, name: str, loads: Loads) -> None:
        for batch, tokens in loads:
            for prompts, rate in (("cold", math.inf), ("warm", math.inf), *(("warm", r) for r in self.args.rates)):
                if rate != math.inf and batch == 1:
                    continue
                row = self.served(serving, server, model, batch, tokens, rate, flush=prompts == "cold")
                self.report.add(
                    "figures", name=name, batch=batch, tokens=tokens, prompts=prompts, rate=str(rate), **row
                )
        self.report.add("figures", name=name, graphs=server.graphs())

    def served(
        self, serving: Any, server: Server, model: Path, batch: int, tokens: int, rate: float, flush: bool
    ) -> dict[str, Any]:
        """One run of bench_serving; prompts of one length are the same in each."""
        if flush:
            server.flush()
        words = {
            "backend": "sglang", "base_url": server.address, "model": model, "tokenizer": model,
            "dataset_name": "random-ids", "num_prompts": batch, "random_input_len": tokens,
            "random_output_len": self.args.new, "random_range_ratio": 1.0, "request_rate": rate,
            "max_concurrency": batch, "seed": 1, "warmup_requests": 0,
            "output_file": self.folder / "serving.jsonl",
        }  # fmt: skip
        argv = [f"--{key.replace('_', '-')}={value}" for key, value in words.items()]
        old, sys.argv = sys.argv, ["bench_serving", *argv, "--tokenize-prompt", "--disable-tqdm"]
        try:
            with (self.folder / "client.log").open("a") as log, contextlib.redirect_stdout(log):
                serving.cli_main()
        finally:
            sys.argv = old
        made = json.loads((self.folder / "serving.jsonl").read_text().splitlines()[-1])
        keys = ("duration", "completed", "total_input_tokens", "total_output_tokens", "output_throughput")
        keys += tuple(f"{q}_{what}_ms" for what in ("ttft", "tpot", "itl") for q in ("median", "p95", "p99"))
        return {key: round(made[key], 3) for key in keys if key in made}

    def qwen(self, which: str, longest: int) -> Path:
        """The shape of a Qwen3, weights drawn wide on the device."""
        import torch
        from safetensors.torch import save_file
        from transformers import Qwen3Config, Qwen3ForCausalLM
        from weights import write_tokenizer

        folder = self.folder / f"qwen-{which}"
        words = SMALL if self.cpu else QWEN[which]
        config = Qwen3Config(
            **words, num_key_value_heads=8, vocab_size=1024 if self.cpu else 151936, max_position_embeddings=longest,
            bos_token_id=1, eos_token_id=2, dtype="bfloat16",
        )  # fmt: skip
        config.architectures = ["Qwen3ForCausalLM"]
        config.save_pretrained(folder)
        with torch.device("meta"):
            model = Qwen3ForCausalLM(config)
        drawn = {}
        torch.manual_seed(0)
        for label, weight in model.named_parameters():
            made = torch.empty(weight.shape, dtype=torch.bfloat16, device=self.args.device)
            if weight.dim() == 2:
                made.normal_(0, 0.5 if "embed" in label or "lm_head" in label else 2 * weight.shape[-1] ** -0.5)
            else:
                made.fill_(2.5 if "q_norm" in label or "k_norm" in label else 1.0)
            drawn[label] = made.cpu()
        save_file(drawn, folder / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(folder)
        return folder

    # what parts have in common --------------------------------------------------------------------------------------

    def control(self, part: str, server: Server, asked: list[list[int]], tokens: int) -> list[dict[str, Any]]:
        """Answers of the dense backend at once, and how many of them it says again one by one and from its cache."""
        passes = self.passes(server, asked, tokens)
        dense = passes.pop("fresh")
        row = {when: self.agree(said, dense) for when, said in passes.items()}
        self.report.add(part, name=f"{self.dense} against itself", graphs=server.graphs(), **row)
        return dense

    def passes(self, server: Server, asked: list[list[int]], tokens: int) -> dict[str, list[dict[str, Any]]]:
        made = {"fresh": server.all(asked, tokens), "cached": server.all(asked, tokens)}
        server.flush()
        return made | {"one by one": server.all(asked, tokens, at_once=False)}

    def agree(self, said: list[dict[str, Any]], want: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = [(s["ids"], list(zip(w["ids"], w["gaps"], strict=True))) for s, w in zip(said, want, strict=True)]
        return _agreement(pairs, TIE[self.args.dtype])

    def compared(
        self,
        part: str,
        model: Path,
        asked: list[list[int]],
        servers: dict[str, tuple[dict[str, Any] | None, Any]],
        simulated: dict[str, Any] | None = None,
        others: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """A row for each server's answers, beside those of the first, which is dense, and the simulation's.

        ``simulated`` is what else the simulation is told, and ``others`` what simulations are told that these answers
        must not please as much.
        """
        found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

        def ask(name: str) -> None:
            config, settings = servers[name]
            label, mixes = _label(part, name), "enable_mixed_chunk" in settings
            witness = self.folder / f"{label}.jsonl" if mixes else None
            with self.attempt(part, name), self.server(label, model, config, witness, **settings) as server:
                passes = self.passes(server, asked, TOKENS)
                served = server.ask("/server_info").get("vortex")
                found[name] = passes, {"served": served, "graphs": server.graphs()}
                if witness:
                    found[name][1]["mixed"] = witness.read_text().count('"mixed"')

        wanted = [row for row in self.args.rows if row.startswith(f"{part}-")]
        together(ask, [name for name in servers if not wanted or name == "dense" or _label(part, name) in wanted])
        flow, dense = (
            FLOWS["latent" if part.startswith("latent") else "tiny"],
            found.get("dense", ({}, {}))[0].get("fresh"),
        )
        for name, (passes, row) in found.items():
            pages = 3 if name.startswith("3 ") else None
            for when, said in passes.items():
                row[when] = {
                    "cached": sum(one["cached"] for one in said),
                    # so that answers can be judged again without a GPU
                    "said": [" ".join(map(str, one["ids"])) for one in said],
                }
                if dense:
                    row[when]["as_dense"] = self.agree(said, dense)
                told = {"flow": flow, "pages": pages} | (simulated or {})
                if name.startswith("dense"):
                    told["triton_decodes"] = not self.cpu
                answers = [
                    told | {"prompt": p, "answer": s["ids"], "cuts": [s["cached"]] if s["cached"] else []}
                    for p, s in zip(asked, said, strict=True)
                ]
                row[when]["as_simulated"] = self.judge(model, answers)
                if when == "fresh":
                    for label, other in (({"by_all_pages": {"pages": None}} if pages else {}) | (others or {})).items():
                        row[when][label] = self.judge(model, [one | other for one in answers])
            self.report.add(part, name=name, **row)

    def judge(self, model: Path, answers: list[dict[str, Any]]) -> dict[str, Any]:
        """What the simulation of each answer thinks of its tokens."""
        regrets = self.simulate(model, answers)
        allowed = REGRET[self.args.dtype]
        tokens = sorted(regret for one in regrets for regret in one)
        over = [(number, one.index(max(one)), round(max(one), 3)) for number, one in enumerate(regrets) if one]
        return {
            "tokens": len(tokens), "best": sum(regret == 0 for regret in tokens),
            "over": sum(regret > allowed for regret in tokens), "allowed": allowed,
            "p99": round(tokens[int(len(tokens) * 0.99)], 4) if tokens else None,
            "worst": sorted(over, key=lambda entry: -entry[2])[:4],
        }  # fmt: skip

    @contextlib.contextmanager
    def attempt(self, part: str, name: str = "") -> Iterator[None]:
        """What goes wrong within is a row, and the next thing is tried."""
        self.report.say(f"{part}: {name}")
        try:
            yield
        except Exception as error:
            where = [line.replace(f"{ROOT}/", "") for line in traceback.format_exc().splitlines()[-6:]]
            self.report.add(part, name=name, failed=f"{type(error).__name__}: {error}"[:600], where=where)


PARTS: dict[str, Callable[[Bench], None]] = {
    "tokens": Bench.tokens,
    "fp8": Bench.fp8,
    "full": Bench.full,
    "smollm2": Bench.smollm2,
    "churn": Bench.churn,
    "latent": Bench.latent,
    "latent_fp8": Bench.latent_fp8,
    "hicache": Bench.hicache,
    "figures": Bench.figures,
}


def together(do: Callable[[str], None], names: Iterable[str]) -> None:
    """Each in a thread; how many servers there are at a time is another matter."""
    threads = [threading.Thread(target=do, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def settings_environment(name: str) -> dict[str, str]:
    """Of a dense backend what it is told; where memory is to run out, a scheduler that soon hopes for short answers."""
    if name.startswith("figures"):
        return DENSE.get(name.rpartition("-")[2], {})
    if name.startswith("full"):
        return {"SGLANG_INIT_NEW_TOKEN_RATIO": "0.01"}
    if not name.startswith("churn"):
        return {}
    from tests.engine.test_churn import HOPEFUL

    return HOPEFUL


def _start(log: Path, began: float) -> str:
    """After how many seconds each of STARTS was there, by the log's clock."""
    said = []
    for line in log.read_text(errors="replace").splitlines():
        what = next((name for words, name in STARTS.items() if words in line), None)
        with contextlib.suppress(ValueError):
            if what:
                at = time.mktime(time.strptime(line[1:20], "%Y-%m-%d %H:%M:%S"))
                said.append(f"{what} {at - began:.0f}")
    return ", ".join(said)


def _label(part: str, name: str) -> str:
    return f"{part}-{name}".replace(",", "").replace(" ", "-")


def latent(weights: Any) -> Any:
    """tests/engine's DeepSeek V2 with the attention of V2-Lite."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config = weights.latent().config.to_dict()
    shape = {
        "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "head_dim": 64,
    }  # fmt: skip
    return DeepseekV2ForCausalLM(DeepseekV2Config(**(config | shape)))


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


def _model_of(name: str) -> str:
    """The model of a server of the figures."""
    return name.rpartition("/")[0] or "1.7b"


def _load_of(word: str) -> tuple[str, Loads]:
    name, _, loads = word.partition("=")
    batches = [load.split("x") for load in loads.split(",")]
    return name, [(int(batch), int(tokens)) for batch, tokens in batches]


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


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("parts", nargs="+", choices=PARTS)
    words.add_argument("--artifacts", type=Path, default=Path("."), help="folder that bench/parts/serve.sh staged")
    words.add_argument("--device", default="cuda", help="cpu tries the script, with flows by name")
    words.add_argument("--dtype", help="of the checks: float16, on a CPU float32")
    words.add_argument("--requests", type=int, default=500, help="of churn")
    words.add_argument("--churn", nargs="*", default=CHURN, choices=CHURN, help="servers of churn")
    words.add_argument("--prefill-graphs", action="store_true", help="CUDA graphs for prompts, in SGLang's own way")
    words.add_argument("--start-seconds", type=int, default=180, help="a server may take to start")
    words.add_argument("--seconds", type=int, default=0, help="after which everything is stopped (default: never)")
    words.add_argument("--side-by-side", type=int, default=14, help="servers at a time")
    words.add_argument(
        "--rows", nargs="*", default=[], help="servers beside the dense one, e.g. tokens-3-pages (default: all)"
    )
    words.add_argument("--full", nargs="*", default=FULL, choices=FULL, help="servers of full")
    words.add_argument(
        "--wave", type=_load_of, nargs="+", action="append", metavar="NAME=BATCHxTOKENS[,...]",
        help="servers of the figures that start side by side: a dense backend or a flow (8b/ before it), and loads"
    )  # fmt: skip
    words.add_argument("--flashinfer", type=Path, help="folder to import FlashInfer from, by servers that use it")
    words.add_argument("--new", type=int, default=512, help="tokens of the figures' answers")
    words.add_argument("--rates", type=float, nargs="*", default=[1.0], help="requests a second beside all at once")
    words.add_argument("--out", type=Path, required=True)
    args = words.parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "float16")
    args.out = args.out.absolute()
    args.wave = [dict(wave) for wave in args.wave or [[_load_of(one)] for one in LOADS]]
    bench = Bench(args)
    (bench.logs / "serve_failed.log").unlink(missing_ok=True)
    for one in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(one, bench.stop)
    signal.alarm(args.seconds)

    def run(part: str) -> None:
        with bench.attempt(part):
            PARTS[part](bench)
        bench.report.say(f"{part}: over")

    for kind in ("grouped", "latent", *(("calm", "scaled") if "fp8" in args.parts else ())):
        with bench.attempt("models", kind):
            bench.model(kind)
    if checks := [part for part in args.parts if part != "figures"]:
        together(run, checks)
    for pool in bench.pools.values():
        pool.terminate()
    if "figures" in args.parts:
        run("figures")


if __name__ == "__main__":
    main()

"""Servers of SGLang's, each started by its command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving import ENGINE
from serving.client import Server
from serving.report import Report

PAGE = 16
DENSE: dict[str, dict[str, str]] = {
    "triton": {}, "fa3": {}, "flashinfer": {}, "flashinfer_tc": {"SGLANG_FLASHINFER_USE_TENSOR_CORE": "true"},
}  # fmt: skip
"""Dense backends of the figures, and what their servers' environment says; what ends in ``_tc`` decodes with tensor
cores, where FlashInfer takes CUDA cores by itself (for fewer than four heads a KV head).
"""
STARTS = {
    "server_args=": "arguments", "Init parallel begin": "worker", "Load weight end": "weights",
    "Memory pool end": "pools", "Engine startup timings": "graphs", "fired up": "first answer",
}  # fmt: skip
"""What a server's log says on its way up, and what is done by then."""


@dataclass
class Servers:
    """``gate`` lets so many be up at a time; their logs are in ``folder``, the ends of failed ones in ``logs`` too."""

    report: Report
    device: str
    dtype: str
    folder: Path
    logs: Path
    gate: threading.Semaphore
    start_seconds: int
    prefill_graphs: str = ""
    """SGLang's CUDA graphs for prompts; where it is empty, as SGLang has them."""
    flashinfer: Path | None = None
    """The folder to import FlashInfer from."""
    processes: set[int] = field(default_factory=set)

    @property
    def cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def dense(self) -> str:
        """SGLang's own backend that answers are compared with."""
        return "torch_native" if self.cpu else "triton"

    @contextlib.contextmanager
    def start(
        self, name: str, model: Path, config: dict[str, Any] | None, witness: Path | None = None, **settings: Any
    ) -> Iterator[Server]:
        """Started by the command line; ``config`` of None is the dense backend."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        plain = {
            "model_path": model, "port": port, "device": self.device, "dtype": self.dtype,
            "attention_backend": self.dense if config is None else "vortex", "page_size": PAGE,
            "grammar_backend": "none", "sampling_backend": "pytorch", "max_total_tokens": 16384,
            "max_running_requests": 16, "context_length": 4096, "mem_fraction_static": 0.3, "random_seed": 0,
            "decode_log_interval": 10, "watchdog_timeout": 300, "skip_tokenizer_init": True,
        }  # fmt: skip
        if self.cpu:
            plain["disable_cuda_graph"] = True
        else:
            plain["cuda_graph_bs_decode"] = [1, 2, 4, 8, 16]
        if self.prefill_graphs:
            plain["cuda_graph_backend_prefill"] = self.prefill_graphs
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
        if self.cpu and "enable_hierarchical_cache" in settings:
            plugins.append(ENGINE / "hostcopies")
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, plugins), environment.get("PYTHONPATH", "")])
        if witness:
            environment["WITNESS"] = str(witness)
        environment |= environment_of(name)
        if "flashinfer" in name:
            environment |= flashinfer_environment(self.flashinfer, self.folder, environment["PYTHONPATH"])
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
            self._wait(process, address, began + self.start_seconds)
            self.report.say(f"{name}: up after {time.monotonic() - began:.0f} s: {_start(path, started)}")
            yield Server(address, path, bool(settings.get("enable_mixed_chunk")))
        except BaseException:
            self._keep(name, path, process)
            raise
        finally:
            self._end(process.pid)
            process.wait()
            self.gate.release()

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
                raise TimeoutError(f"no server after {self.start_seconds} s")
            time.sleep(0.5)

    def _keep(self, name: str, path: Path, process: subprocess.Popen[bytes]) -> None:
        """The end of a log into the one file of logs that comes back, and less of it to the screen."""
        lines = path.read_text(errors="replace").splitlines()
        with self.report.lock, (self.logs / "serve_failed.log").open("a") as all_logs:
            all_logs.write(f"==== {name}, status {process.poll()}\n" + "\n".join(lines[-250:]) + "\n")
        self.report.say(f"{name} failed; the end of its log:\n" + "\n".join(line[:300] for line in lines[-25:]))


def environment_of(name: str) -> dict[str, str]:
    """Of a dense backend what it is told; where memory is to run out, a scheduler that soon hopes for short answers."""
    if name.startswith("figures"):
        return DENSE.get(name.rpartition("-")[2], {})
    if name.startswith("full"):
        return {"SGLANG_INIT_NEW_TOKEN_RATIO": "0.01"}
    if not name.startswith("churn"):
        return {}
    from tests.engine.test_churn import HOPEFUL

    return HOPEFUL


def flashinfer_environment(carried: Path | None, folder: Path, path: str) -> dict[str, str]:
    """What lets a server import FlashInfer instead of its stub, and keeps that from compiling."""
    return {
        "PYTHONPATH": f"{carried}{os.pathsep}{path}" if carried else path, "SGLANG_IS_FLASHINFER_AVAILABLE": "true",
        "FLASHINFER_WORKSPACE_BASE": str(folder / "flashinfer"), "FLASHINFER_DISABLE_JIT": "1",
    }  # fmt: skip


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

"""Engines as subprocesses of their own environment, and what their tests have in common."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

VERSIONS = ("0.5.23", "0.5.16")

TOKENS = 40
"""Decoded in a pass: more than two pages, so that pages filled by decoding become candidates."""


def python(version: str) -> Path:
    """The interpreter that has SGLang of ``version``; ``make engine`` puts it there."""
    return ROOT / f".venv-engine-{version}" / "bin" / "python"


def prompts(seed: int, lengths: tuple[int, ...] = (150, 163, 176, 189)) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, 1000) for _ in range(n)] for n in lengths]


@dataclass
class Lab:
    """Where engines of one version run: the small model, a cache of compiled flows, environment variables."""

    version: str
    model: Path
    cache: Path
    environment: dict[str, str] = field(default_factory=dict)
    plugins: list[Path] = field(default_factory=list)

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Arguments of ``sglang.Engine``."""
        plain = {
            "model_path": str(self.model),
            "device": "cpu",
            "dtype": "float32",
            "attention_backend": "vortex",
            "skip_tokenizer_init": True,
            "grammar_backend": "none",
            "disable_cuda_graph": True,
            "max_total_tokens": 4096,
            "max_running_requests": 8,
            "context_length": 2048,
            "mem_fraction_static": 0.3,
            "random_seed": 0,
            "log_level": "info",
        }
        return plain | changes

    def variables(self, config: dict[str, Any] | None) -> dict[str, str]:
        """The environment of an engine with this VORTEX_CONFIG."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("VORTEX_", "SGLANG_"))}
        mine |= {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE / "stubs", *self.plugins))),
            "XDG_CACHE_HOME": str(self.cache),
            "VORTEX_COMPILER": os.environ.get("VORTEX_COMPILER", sys.executable),
            "SGLANG_USE_CPU_ENGINE": "1",
            "TRITON_INTERPRET": "1",
            # several threads that spin for each other are slow on a busy machine
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            # where torch brings NCCL along, SGLang takes ranks on a CPU for ranks on GPUs
            "SGLANG_NCCL_SO_PATH": "/no/nccl/on/a/cpu",
        }
        if config is not None:
            mine["VORTEX_CONFIG"] = json.dumps(config)
        return mine | self.environment

    def command(self, config: dict[str, Any], **changes: Any) -> list[str]:
        """The words that start a server, as users do, with the configuration as a flag."""
        words = [str(python(self.version)), "-m", "sglang.launch_server", "--vortex-config", json.dumps(config)]
        for name, value in self.settings(skip_tokenizer_init=False, **changes).items():
            if value is not False:
                words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        return words

    @contextlib.contextmanager
    def server(self, config: dict[str, Any], timeout: int = 200, **settings: Any) -> Iterator[str]:
        """The address of a server that was started as users do, with the configuration as a flag."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = self.command(config, port=port, **settings)
        address = f"http://127.0.0.1:{port}"
        late = time.monotonic() + timeout
        with _started(words, self.variables(None), subprocess.DEVNULL) as (server, log):
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
                if server.poll() is not None or time.monotonic() > late:
                    raise AssertionError(f"no server:\n{_read(log)[-6000:]}")
                time.sleep(0.5)
            yield address

    def run(self, job: dict[str, Any], config: dict[str, Any] | None = None, timeout: int = 400) -> Answer:
        """Do a job of drive.py's; the answer has everything that was printed."""
        words = [str(python(self.version)), str(HERE / "drive.py")]
        with _started(words, self.variables(config), subprocess.PIPE) as (engine, log):
            late = False
            try:
                engine.communicate(json.dumps(job), timeout=timeout)
            except subprocess.TimeoutExpired:
                late = True
            text = _read(log)
        if late:
            raise AssertionError(f"no answer in {timeout} s:\n{text[-6000:]}")
        lines = [line for line in text.splitlines() if line.startswith('{"passes"')]
        return Answer(json.loads(lines[-1]) if lines else None, text)

    @contextlib.contextmanager
    def witness(self) -> Iterator[list[dict[str, Any]]]:
        """What the schedulers of the engines within did, as ``witness.py`` says; there after the block."""
        seen: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seen.jsonl"
            self.environment["WITNESS"] = str(path)
            self.plugins.append(HERE / "witness")
            yield seen
            seen += map(json.loads, path.read_text(encoding="utf-8").splitlines())

    def serve(
        self,
        config: dict[str, Any],
        passes: list[dict[str, Any]],
        references: list[dict[str, Any]] = (),  # type: ignore[assignment]
        **settings: Any,
    ) -> dict[str, Any]:
        """:meth:`run` of an engine that is expected to work."""
        job = {"engine": self.settings(**settings), "passes": passes, "references": list(references)}
        answer = self.run(job, config)
        assert answer.result is not None, answer.log[-6000:]
        return answer.result


@contextlib.contextmanager
def _started(words: list[str], environment: dict[str, str], stdin: int) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A process and the file of what it prints; at the end it is ended, with all that it started.

    A session of its own and a file instead of pipes: no process that outlives the engine holds this one up.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            words, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
        )
        try:
            yield process, log
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(log: Any) -> str:
    log.seek(0)
    return str(log.read())


@dataclass(frozen=True)
class Answer:
    result: dict[str, Any] | None
    log: str


def ids(one_pass: list[dict[str, Any]]) -> list[list[int]]:
    return [request["ids"] for request in one_pass]


def shares(said: list[list[int]], references: list[list[Any]]) -> list[float]:
    """Of the tokens of these answers, how many each simulation finds best: ``references`` are theirs, those of all
    answers by the first simulation, then by the next.
    """
    tokens, best = [t for one in said for t in one], [t for one in references for t, _ in one]
    each = [best[i : i + len(tokens)] for i in range(0, len(best), len(tokens))]
    return [sum(a == b for a, b in zip(tokens, one, strict=True)) / len(tokens) for one in each]


EXCUSED = 1e-4
"""A difference is excused where the simulation's next best choice was this near."""


def agree(got: list[int], want: list[tuple[int, float]]) -> str:
    """Nothing when the tokens are the simulation's, else where and by how much they part."""
    for i, (token, (expected, gap)) in enumerate(zip(got, want, strict=True)):
        if token != expected:
            return "excused" if gap < EXCUSED else f"token {i} is {token}, {expected} by a margin of {gap:.2g} expected"
    return ""

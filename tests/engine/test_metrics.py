"""What SGLang's ``/metrics`` shows of the backend: counted by hand with stand-ins, and asked of a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.engine.conftest import lab
from tests.engine.harness import VERSIONS, Lab, prompts, python
from tests.engine.standins import KV_HEADS, SPEC, World, stood_in
from tests.engine.test_server import ask
from vortex.runtime.sglang import plugin


class Kept:
    """A counter or gauge, by its name and labels."""

    values: dict[str, float]

    def __init__(self, name: str, what: str, labels: list[str], multiprocess_mode: str = "") -> None:
        assert what
        self.name, self.known = name, labels

    def labels(self, **given: str) -> Kept:
        assert list(given) == self.known
        self.name += str(given)
        return self

    def inc(self, by: float) -> None:
        assert by >= 0
        self.values[self.name] = self.values.get(self.name, 0) + by

    def set(self, to: float) -> None:
        self.values[self.name] = to


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """What prometheus_client, stood in for, was told."""
    module: Any = ModuleType("prometheus_client")
    Kept.values = {}
    module.Counter = module.Gauge = Kept
    monkeypatch.setitem(sys.modules, "prometheus_client", module)
    with stood_in():
        yield Kept.values


def serving(artifact: Path, version: str = "0_5_23", **args: Any) -> World:
    return World(artifact, version, args={"served_model_name": "m", "enable_metrics": True} | args)


@pytest.mark.parametrize("version", ["0_5_16", "0_5_23"])
def test_pages_are_counted_by_what_the_scheduler_knows(artifact: Path, shown: dict[str, float], version: str) -> None:
    world = serving(artifact, version)
    world.runner.attn_backend = world.backend

    def request(tokens: int) -> SimpleNamespace:
        kept = SimpleNamespace(kv_committed_len=tokens)
        return SimpleNamespace(kv=kept) if version == "0_5_23" else kept

    def passes(mode: str, tokens: list[int], decoding: int = 0) -> None:
        is_one = SimpleNamespace(
            is_mixed=lambda: mode == "mixed", is_decode=lambda: mode == "decode", is_extend=lambda: mode != "decode"
        )
        batch = SimpleNamespace(forward_mode=is_one, reqs=[request(n) for n in tokens], decoding_reqs=[0] * decoding)
        plugin._tell_decode_rows(None, None, batch, world.runner)

    passes("prefill", [500, 600])
    passes("decode", [151, 152])
    passes("mixed", [400, 161], decoding=1)
    rank = "{'model_name': 'm', 'tp_rank': '0'}"
    # ten, ten and eleven pages, of which five are read in the layer that selects and all in the dense one
    assert shown[f"vortex:pages{rank}"] == 2 * 31
    assert shown[f"vortex:pages_read{rank}"] == 15 + 31
    assert shown[f"vortex:read_share{rank}"] == pytest.approx((5 + 11) / 22)
    page, summary = 2 * SPEC.page_size * SPEC.head_dim * 4 * KV_HEADS, 2 * SPEC.head_dim * 4 * KV_HEADS
    assert shown[f"vortex:bytes_saved{rank}"] == (31 - 15) * page - (7 + 7 + 8) * summary
    (served,) = (name for name, value in shown.items() if name.startswith("vortex:serves") and value == 1)
    for label in ("'flow': 'quest'", "'budget_pages': '5'", "'budget_tokens': '80'", "'page_size': '16'"):
        assert label in served
    assert "'dense_layers': '1'" in served


def test_who_has_metrics(artifact: Path, shown: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert World(artifact).backend.metrics is None
    second = SimpleNamespace(attn_tp_size=1, attn_tp_rank=1)
    for name in ("sglang.srt.runtime_context", "vortex.runtime.sglang.backend"):
        monkeypatch.setattr(sys.modules[name], "get_parallel", lambda: second)
    assert serving(artifact).backend.metrics is None
    assert not shown
    assert serving(artifact, enable_metrics_for_all_schedulers=True).backend.metrics is not None
    assert any("'tp_rank': '1'" in name for name in shown)


def test_a_model_without_a_served_name_is_called_as_sglang_calls_it(artifact: Path, shown: dict[str, float]) -> None:
    assert serving(artifact, served_model_name=None, model_path="models/m").backend.metrics is not None
    assert shown
    assert all("'model_name': 'models/m'" in name for name in shown)


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_shows_what_it_serves_and_what_it_saved(shared: Path, version: str) -> None:
    mine: Lab = lab(version, shared)
    has = [str(python(version)), "-c", "import prometheus_client"]
    if subprocess.run(has, capture_output=True, env=mine.variables(None), check=False).returncode:
        pytest.fail("the engine's environment has no prometheus_client; 'make engine' installs it")
    (asked,) = prompts(12, (150,))
    config = {"flow": "quest", "budget": {"pages": 3}, "dense_layers": [2]}
    with mine.server(config, enable_metrics=True) as address:
        ask(f"{address}/v1/completions", prompt=asked, max_tokens=30, ignore_eos=True)
        with urllib.request.urlopen(f"{address}/metrics/", timeout=20) as answer:
            text = answer.read().decode()
        with urllib.request.urlopen(f"{address}/server_info", timeout=20) as answer:
            serves = json.load(answer)["vortex"]
    assert (serves["flow"], serves["budget_pages"], serves["budget_tokens"]) == ("quest", 6, 96)
    assert serves["dense_layers"] == [2]
    found = {name: float(x) for name, x in re.findall(r"^(vortex:\w+)\{.*\} ([0-9.e+]+)$", text, re.MULTILINE)}
    assert found["vortex:serves"] == 1
    assert 'flow="quest"' in text
    # of SGLang's own series as well
    assert set(re.findall(r'model_name="([^"]*)"', text)) == {str(mine.model)}
    lengths = [150 + i for i in range(1, 30)]  # the first token is the prompt's
    pages = [-(-n // 16) for n in lengths]
    # overlap runs one step of a request that has ended; a server asks itself for a few tokens before it is ready
    extra = found["vortex:pages_total"] - 4 * sum(pages)
    assert 0 <= extra <= 4 * (12 + 20)
    assert 0 <= found["vortex:pages_read_total"] - sum(3 * 6 + n for n in pages) <= extra
    assert 0.5 < found["vortex:read_share"] <= 1
    page, summary = 2 * 16 * 64 * 4 * 2, 2 * 64 * 4 * 2
    saved = sum(3 * ((n - 6) * page - (n - 3) * summary) for n in pages)
    assert 0 <= found["vortex:bytes_saved_total"] - saved <= 3 * 12 * page

"""Starts that cannot be right end before a worker runs, in one sentence; what a worker finds later is said last."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import lab
from tests.engine.harness import HERE, VERSIONS, Lab, python

pytestmark = [pytest.mark.engine]

SECONDS = 3
"""Beyond imports, as the issue of these refusals has it; the machine that runs tests may be busy."""

OWN = """
import vortex

@vortex.register("mean")
class Mean(vortex.vFlow):
    def create_cache(self, spec):
        return {"mean": vortex.Field()}
    def forward_cache(self, page):
        return {"mean": page.k.mean()}
    def forward_indexer(self, q, cache):
        return vortex.topk(q @ cache.mean)

"""


def cases(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Name -> the case for refused.py, and what its error must say."""
    (folder / "broken.py").write_text("import vortex\nx = [\n")
    (folder / "raises.py").write_text(OWN.replace("page.k.mean()", "page.k.nonsense()"))
    (folder / "notes.txt").write_text("no artifact")
    (folder / "file").touch()
    (folder / "c.json").write_text('{"flow": "broken.py"}')

    def config(**keys: Any) -> dict[str, Any]:
        return {"config": json.dumps(keys), "settings": {"page_size": 16}}

    def setting(**changes: Any) -> dict[str, Any]:
        return {"settings": {"page_size": 16} | changes}

    far = "VX9003]: VORTEX_CONFIG: budget: pages is 100000000000, an integer from 0 to 268435455 is needed"
    return {
        "key": (config(flaw="quest"), "VX9003]: VORTEX_CONFIG: it has no 'flaw', did you mean 'flow'?"),
        "no page size": (config(flaw="quest") | {"settings": {}}, "VX9003"),
        "truth value": (config(every=True), "VX9003]: VORTEX_CONFIG: every is True; an integer from 1 to 65536"),
        "number of a budget": (
            config(budget={"pages": True}),
            "VORTEX_CONFIG: budget: pages is True, an integer",
        ),
        "far too many pages": (config(budget={"pages": 10**11}), far),
        "flow": (config(flow="quast"), "VX1018]: no flow named 'quast', did you mean 'quest'?"),
        "no file": (
            config(flow="/nowhere/mine.py:f"),
            "VORTEX_CONFIG: flow names '/nowhere/mine.py', which is not the",
        ),
        "no artifact": (config(flow="/nowhere/mine.vxa"), "VORTEX_CONFIG: flow names '/nowhere/mine.vxa', which"),
        "no file here": (config(flow="mine.py"), f"is one from {os.getcwd()}, where the server starts\n"),
        "no file beside the configuration": (
            {"config": str(folder / "c.json"), "settings": {"page_size": 16}},
            f"where the server starts, and not from where '{folder}/c.json' lies",
        ),
        "broken file": (config(flow=str(folder / "broken.py")), "broken.py:2"),
        "flow that raises": (config(flow=str(folder / "raises.py")), "raises.py:9"),
        "no configuration": ({"config": "/nowhere.json", "settings": {"page_size": 16}}, "VX9003"),
        "prefill": (config(prefill_backend="tritan"), "VX9002]: the attention backend vortex does not serve prefill_b"),
        "prefill on a GPU": (config(prefill_backend="flashinfer"), "prefill_backend 'flashinfer' on a CPU: there tor"),
        "dense layer": (config(dense_layers=[4]), "dense layer 4: the model has layers 0 to 3"),
        "shared layer": (config(layers={"9": 1}), "layer 9 with pages of 1: the model has layers 0 to 3"),
        "block": (config(block_size=5), "VX9003]: VORTEX_CONFIG: 'block_size' is 5"),
        "parameters": (config(parameters="/nowhere.safetensors"), "parameters names '/nowhere.safetensors'"),
        "KV type": (setting(kv_cache_dtype="fp8_e5m2"), "VX9002]: the attention backend vortex does not serve a KV c"),
        "fp8 in f32, or on a CPU": (setting(kv_cache_dtype="fp8_e4m3"), "vortex does not serve a KV cache of fp8"),
        "pipeline": (setting(pp_size=2), "VX9002]: the attention backend vortex does not serve pipeline parallelism"),
        "host memory": (
            setting(enable_hierarchical_cache=True, hicache_mem_layout="page_head", hicache_io_backend="direct"),
            "VX9002]: the attention backend vortex does not serve HiCache ",
        ),
        "prefill apart": (setting(prefill_attention_backend="torch_native"), "separate prefill and decode backends"),
        "decode alone": (
            setting(attention_backend="torch_native", decode_attention_backend="vortex"),
            "separate prefill and decode backends",
        ),
        "statistics": (setting() | {"environment": {"VORTEX_STATS": "/nowhere/s.json"}}, "VX7004]: '/nowhere/s.json'"),
        "folder of statistics": (setting() | {"environment": {"VORTEX_STATS": str(folder)}}, "VX7004"),
        "probe": (setting() | {"environment": {"VORTEX_PROBE": "/nowhere/p.jsonl"}}, "VX9010"),
        "trace": (setting() | {"environment": {"VORTEX_TRACE": "/nowhere/t.jsonl"}}, "VX9015"),
        "table": (config(budget={"table": [1, 2, 3]}), "VX9003"),
        "cache": (setting() | {"environment": {"XDG_CACHE_HOME": str(folder / "file")}}, "VX7004"),
        "compiler": (
            config(flow="block_topk") | {"environment": {"VORTEX_COMPILER": "/nowhere", "XDG_CACHE_HOME": str(folder)}},
            "VX9005",
        ),
    }


def answered(script: str, here: Lab, job: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The last line that a script here says to a job, in the engine's environment, and all that it says."""
    words = [str(python(here.version)), str(HERE / script)]
    done = subprocess.run(
        words, input=json.dumps(job), capture_output=True, text=True, env=here.variables(None), timeout=300
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_what_can_be_known_is_refused_before_a_worker_starts(version: str, shared: Path, tmp_path: Path) -> None:
    here = lab(version, shared)
    wanted = cases(tmp_path)
    job = {"settings": here.settings(), "cases": {name: case for name, (case, _) in wanted.items()} | {"served": {}}}
    said, _ = answered("refused.py", here, job)
    assert said.pop("served")[1] == ""
    wrong = [
        f"{name}: {text!r} in {seconds:.1f} s"
        for name, (seconds, text) in said.items()
        if not text.startswith("error[VX") or wanted[name][1] not in text or seconds > SECONDS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("version", VERSIONS)
def test_prompts_have_cuda_graphs_where_they_ran_or_are_asked_for(version: str, shared: Path) -> None:
    here = lab(version, shared)
    cases: dict[str, dict[str, Any]] = {
        "read by torch_native": {},
        "asked for": {"settings": {"cuda_graph_backend_prefill": "breakable"}},
        "read by triton": {"config": '{"prefill_backend": "triton"}'},
        "SGLang's own": {"settings": {"attention_backend": "triton"}},
    }
    job = {"settings": here.settings(page_size=16, disable_cuda_graph=False), "cases": cases}
    said, log = answered("prompt_graphs.py", here, job)
    ran = version == "0.5.23"
    assert said == {
        "read by torch_native": "disabled",
        "asked for": "breakable",
        "read by triton": "breakable" if ran else "disabled",
        "SGLang's own": "breakable",
    }
    assert "vortex: no CUDA graphs for prompts that 'torch_native' reads" in log
    assert ("prompts that 'triton' reads" in log) is not ran


@pytest.mark.full
@pytest.mark.parametrize("version", VERSIONS)
def test_the_command_line_ends_in_one_sentence(version: str, shared: Path) -> None:
    here = lab(version, shared)
    words = here.command({"flaw": "quest"}, page_size=16)
    done = subprocess.run(words, capture_output=True, text=True, env=here.variables(None), timeout=200)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "Load weight" not in said
    first, way_out = done.stderr.splitlines()[-2:]
    assert first == "error[VX9003]: VORTEX_CONFIG: it has no 'flaw', did you mean 'flow'?"
    assert way_out.startswith("   = help: a JSON object")


@pytest.mark.full
@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_worker_finds_is_said_last(version: str, shared: Path, tmp_path: Path) -> None:
    """That SGLang cannot start a dense backend on this machine is known when it is tried."""
    here = lab(version, shared)
    here.environment |= {"TMPDIR": str(tmp_path), "VORTEX_PLANTED_BUG": "no-prefill"}
    here.plugins.append(HERE / "sabotage")
    words = here.command({}, page_size=16)
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=here.variables(None), timeout=300)
    assert done.returncode != 0
    said = (tmp_path / "log").read_text()
    first, way_out = said.splitlines()[-2:]
    assert first.startswith("error[VX9002]: ")
    assert "prefill_backend 'torch_native': SGLang cannot start it: " in first
    assert way_out == "   = help: name another 'prefill_backend' in VORTEX_CONFIG"
    assert not list(tmp_path.glob("vortex-last-word-*"))

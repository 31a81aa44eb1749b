"""Probes: the masses beside a plain computation of them, where they are taken, and what becomes of their file.

Stand-ins take SGLang's place, but for the last test.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.harness import Lab, prompts
from tests.engine.standins import KV_HEADS, QUERY_HEADS, SPEC, Mode, World, stood_in
from vortex.cli.main import main
from vortex.errors import VortexError
from vortex.runtime.mass import best_mass, by_page, read_mass
from vortex.runtime.probes import Wanted, by_head, read_probe, verdict
from vortex.runtime.sglang import plugin
from vortex.runtime.sglang.probe import Probe
from vortex.runtime.sglang.step import Step
from vortex.runtime.sglang.watch import WatchedStep

PAGE = SPEC.page_size


@pytest.fixture(autouse=True)
def _standing_in() -> Iterator[None]:
    with stood_in():
        yield


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("VORTEX_PROBE", f"{tmp_path}/probe.jsonl:every 2 steps:pages")
    return tmp_path / "probe.jsonl"


def ready(artifact: Path, requests: list[int], **more: Any) -> tuple[World, torch.Generator]:
    """Each request has read 150 tokens and owns pages in disorder."""
    world, draw = World(artifact, **more), torch.Generator().manual_seed(0)
    for r in requests:
        world.give(r, list(range(45 - r, 0, -4)))
    world.read(requests, 150, draw)
    return world, draw


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- the masses


def test_what_pages_hold_is_what_a_loop_says() -> None:
    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(2, 3, 4, 77, generator=draw).mul(3).softmax(-1)
    mass = by_page(weights, 16)
    assert mass.shape == (2, 3, 4, 5)
    kept = torch.rand(2, 3, 5, generator=draw) < 0.5
    counts = torch.tensor([[2, 3, 5], [3, 4, 5]])
    got, best = read_mass(mass, kept), best_mass(mass, counts, torch.tensor([True, False, False, False, True]))
    for b, h in itertools.product(range(2), range(3)):
        by_loop = [float(weights[b, h, :, 16 * p : 16 * p + 16].sum()) / 4 for p in range(5)]
        assert float(got[b, h]) == pytest.approx(
            sum(m for m, k in zip(by_loop, kept[b, h], strict=True) if k), abs=1e-6
        )
        several = itertools.combinations(by_loop[1:4], int(counts[b, h]) - 2)
        most = max(sum(some) for some in several) + by_loop[0] + by_loop[4]
        assert float(best[b, h]) == pytest.approx(most, abs=1e-6)


def test_a_probed_step_says_what_a_plain_computation_says(artifact: Path, file: Path) -> None:
    world, draw = ready(artifact, [1, 2])
    for _ in range(3):
        world.say([1, 2], draw)
    world.backend.probe.requests = ("a", "b")
    # what each layer is going to be asked, drawn a second time
    again = torch.Generator().manual_seed(0)
    again.set_state(draw.get_state())
    world.say([1, 2], draw)
    q = torch.randn(2, QUERY_HEADS + 2 * KV_HEADS, SPEC.head_dim, generator=again)[:, :QUERY_HEADS]

    head, *rest = lines(file)
    assert (head["vortex_probe"], head["flow"], head["every"], head["first_head"]) == (1, "quest", 2, 0)
    assert [(x["step"], x["layer"]) for x in rest] == [(2, 0), (4, 0)]  # layer 1 is dense
    last = rest[-1]
    assert rest[0]["requests"] == ["row 1", "row 2"]
    assert (last["requests"], last["tokens"], last["pages"]) == (["a", "b"], [154, 154], [10, 10])
    assert last["read"] == [[5, 5], [5, 5]]
    for r, h in itertools.product(range(2), range(KV_HEADS)):
        keys = world.pool.get_key_buffer(0)[world.req_to_token[r + 1, :154].long(), h]
        mine = q[r, SPEC.group * h : SPEC.group * (h + 1)]
        weights = torch.softmax(mine @ keys.T * SPEC.head_dim**-0.5, -1).mean(0)
        held = [float(weights[PAGE * p : PAGE * p + PAGE].sum()) for p in range(10)]
        which = last["which"][r][h]
        assert which[0] == 0
        assert which[-2:] == [8, 9]
        assert last["mass"][r][h] == pytest.approx(sum(held[p] for p in which), abs=1e-5)
        reserved = held[0] + held[8] + held[9]
        assert last["best"][r][h] == pytest.approx(reserved + sum(sorted(held[1:8])[-2:]), abs=1e-5)
        assert last["reserved"][r][h] == pytest.approx(reserved, abs=1e-5)


def test_a_diffuse_layer_and_a_flow_that_scores_badly_are_told_apart(artifact: Path, file: Path) -> None:
    found = []
    for planted in (False, True):
        world, draw = ready(artifact, [1])
        keys = world.pool.get_key_buffer(0)
        keys.zero_()  # without more, all tokens weigh alike
        world.say([1], draw)
        if planted:
            # one page has nearly all of the mass of the step that is probed, and summaries that say nothing of it
            again = torch.Generator().manual_seed(0)
            again.set_state(draw.get_state())
            q = torch.randn(1, QUERY_HEADS + 2 * KV_HEADS, SPEC.head_dim, generator=again)[0, :QUERY_HEADS]
            slots = world.req_to_token[1, 3 * PAGE : 4 * PAGE].long()
            keys[slots] = 4 * q.view(KV_HEADS, SPEC.group, -1).sum(1)
            for field in world.fields.values():
                field[slots[0] // PAGE] = 0.0
        world.say([1], draw)
        _, read = read_probe(file)
        heads = by_head(read)
        found.append((verdict(heads), heads[0]))
    (diffuse, even), (bad, lost) = found
    assert diffuse == "diffuse: make it dense, or read more"
    assert even.best == pytest.approx(0.5, abs=0.05)
    assert bad == "the flow scores badly: try another"
    assert lost.best > 0.95
    assert lost.mass < 0.05


def test_of_a_large_batch_some_are_looked_at_and_others_next_time(tmp_path: Path) -> None:
    about: Any = SimpleNamespace(facts=dict)
    probe = Probe(Wanted(tmp_path / "p.jsonl", every=2), about)
    assert probe.some(3) == [0, 1, 2]
    seen = []
    for _ in range(6):
        if probe.due:
            seen.append(probe.some(20))
        probe.count()
    assert seen == [list(range(16)), [*range(12), 16, 17, 18, 19], [*range(8), *range(12, 20)]]


def test_layers_that_reuse_pages_are_measured_with_them(artifact: Path, file: Path) -> None:
    world, draw = ready(artifact, [1], dense_layers=[], layers={"1": 0})
    for _ in range(2):
        world.say([1], draw)
    _, first, second = lines(file)
    assert (first["layer"], second["layer"]) == (0, 1)
    assert first["which"] == second["which"]
    assert first["mass"] != second["mass"]


def test_probes_change_no_token_and_leave_prompts_alone(artifact: Path, file: Path) -> None:
    said = []
    for probed in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not probed:
                patch.delenv("VORTEX_PROBE")
            world, draw = ready(artifact, [1, 2])
            said.append([world.say([1, 2], draw) for _ in range(4)])
    assert all(torch.equal(a, b) for one, other in zip(*said, strict=True) for a, b in zip(one, other, strict=True))
    assert len(lines(file)) == 3


# --- where they are taken


def hooks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of SGLang the plugin changes."""
    found: list[str] = []
    registry = SimpleNamespace(register=lambda target, hook, kind: found.append(f"{target} {hook.__name__}"))
    kinds = SimpleNamespace(BEFORE="before", AFTER="after", AROUND="around")
    contents: dict[str, dict[str, Any]] = {
        "layers.attention.attention_registry": {"register_attention_backend": lambda name: lambda make: None},
        "plugins.hook_registry": {"HookRegistry": registry, "HookType": kinds},
        "server_args": {"ATTENTION_BACKEND_CHOICES": ["vortex"], "add_attention_backend_choices": print},
    }
    with monkeypatch.context() as here:
        for name, content in contents.items():
            module = ModuleType(name)
            vars(module).update(content)
            here.setitem(sys.modules, f"sglang.srt.{name}", module)
        here.setattr(plugin, "_installed", lambda: "0.5.23")
        plugin.activate()
    return found


def test_off_nothing_is_hooked_and_no_step_is_another(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(artifact)
    assert world.backend.probe is None
    assert type(world.backend._eager) is Step
    without = hooks(monkeypatch)
    monkeypatch.setenv("VORTEX_PROBE", str(tmp_path / "probe.jsonl"))
    more = [target.split()[-1] for target in hooks(monkeypatch) if target not in without]
    assert more == ["_not_where_a_look_is_due", "_name_requests"]
    world = World(artifact)
    assert type(world.backend._eager) is WatchedStep
    world.backend.init_cuda_graph_state(2, 2)
    assert type(world.backend._captured) is Step


def test_replayed_steps_count_and_the_one_that_is_due_runs_without_a_graph(artifact: Path, file: Path) -> None:
    world, draw = ready(artifact, [1])
    backend = world.backend
    backend.init_cuda_graph_state(1, 1)
    graphs = SimpleNamespace(model_runner=SimpleNamespace(attn_backend=backend))
    eager = []
    for _ in range(6):
        batch = world.batch(Mode.DECODE, [1], 1)
        if plugin._not_where_a_look_is_due(True, graphs, batch) is None:
            backend.init_forward_metadata_out_graph(batch)
            backend.init_forward_metadata_in_graph(batch)
        else:
            eager.append(backend.probe.steps + 1)
            backend.init_forward_metadata(batch)
        world.forward(batch, draw)
    assert eager == [2, 4, 6]
    assert [x["step"] for x in lines(file)[1:]] == eager


# --- the variable and the file


def test_what_the_variable_may_say(tmp_path: Path) -> None:
    name = str(tmp_path / "p.jsonl")
    assert Wanted.read("") is None
    for text, want in {
        name: (100, False),
        f"{name}:every 20 steps": (20, False),
        f"{name}:7": (7, False),
        f"{name}:every 3:pages": (3, True),
        f"{name}:pages": (100, True),
    }.items():
        made = Wanted.read(text)
        assert made is not None
        assert (str(made.file), made.every, made.pages) == (name, *want)
        assert made.of_rank(0) == Path(name)
        assert made.of_rank(2) == Path(f"{name}.2")
    for text, says in {
        ":5": "it names no file",
        f"{name}:0": "every 0",
        f"{name}:every x steps": "'every x steps' after the file is neither",
        f"{tmp_path}/no/such/folder": "No such file or directory",
        str(tmp_path): "Is a directory",
    }.items():
        with pytest.raises(VortexError, match="VORTEX_PROBE") as raised:
            Wanted.read(text)
        assert raised.value.code == "VX9010"
        assert says in str(raised.value)


def test_a_file_that_cannot_be_written_refuses_the_start(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_PROBE", "/no/such/folder/probe.jsonl")
    with pytest.raises(VortexError) as raised:
        World(artifact)
    assert raised.value.code == "VX9010"


@pytest.mark.parametrize("trouble", ["disk", "memory"])
def test_what_goes_wrong_later_is_said_once_and_stops_nothing(
    artifact: Path, file: Path, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world, draw = ready(artifact, [1])
    if trouble == "disk":
        file.unlink()
        file.mkdir()
    else:

        def none_left(*args: Any) -> Any:
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(WatchedStep, "_weights", none_left)
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            assert all(out.isfinite().all() for out in world.say([1], draw))
    (said,) = (record.getMessage() for record in caplog.records)
    assert "serving goes on" in said
    assert ("Is a directory" if trouble == "disk" else "no memory") in said
    assert world.backend.probe.steps == 6


# --- the reader


def written(file: Path, masses: dict[int, list[tuple[float, float]]], first_head: int = 0, read: int = 5) -> Path:
    """A file of one request's steps: mass and best of each head, by layer."""
    head = {"vortex_probe": 1, "flow": "quest", "layers": 9, "dense_layers": [7], "page_size": 16, "block_size": 16}
    head |= {"budget_pages": 5, "budget_tokens": 80, "every": 2, "first_head": first_head}
    made = [head]
    for layer, heads in masses.items():
        mass, best = zip(*heads, strict=True)
        figures = {"mass": [mass], "best": [best], "reserved": [[0.5] * len(heads)], "read": [[read] * len(heads)]}
        made.append({"step": 2, "layer": layer, "requests": ["a"], "tokens": [154], "pages": [10], **figures})
    file.write_text("".join(json.dumps(line) + "\n" for line in made))
    return file


def test_the_table_tells_a_diffuse_layer_from_a_bad_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(
        tmp_path / "p.jsonl",
        {0: [(0.95, 0.96), (0.97, 0.97)], 1: [(0.5, 0.52), (0.6, 0.61)], 2: [(0.7, 0.95), (0.9, 0.9)], 3: [(0.2, 0.6)]},
    )
    assert main(["probe", str(file)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("flow quest, 5 pages of 16 (80 tokens), dense layers 7 of 9")
    rows = [line.split("  ") for line in table.splitlines() if line.strip()[:1].isdigit()]
    verdicts = [row[-1] for row in rows]
    assert verdicts[0] == "fine"
    assert verdicts[1] == "diffuse: make it dense, or read more"
    assert verdicts[2] == "the flow scores badly: try another"
    assert verdicts[3] == f"{verdicts[2]}; {verdicts[1]}"
    assert ".70/.95" in table
    other = written(tmp_path / "p.jsonl.1", {0: [(0.5, 0.96)]}, first_head=2)
    assert main(["probe", str(file), str(other), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [h["head"] for h in made["layers"][0]["heads"]] == [0, 1, 2]
    assert made["layers"][0]["verdict"] == verdicts[2]


def test_without_a_probed_step_it_says_how_to_get_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "p.jsonl", {})
    for every, says in (
        (100, f"one decode step in 100 is; VORTEX_PROBE='{file}:every 5 steps' looks at more"),
        (2, f"one decode step in 2 is; VORTEX_PROBE='{file}:every 1 step' looks at more"),
        (1, "every decode step is"),
    ):
        head = json.loads(file.read_text()) | {"every": every}
        file.write_text(json.dumps(head) + "\n")
        assert main(["probe", str(file)]) == 0
        assert capsys.readouterr().out.endswith(f"no step was probed yet: {says}\n")


def test_rows_that_read_everything_say_nothing(tmp_path: Path) -> None:
    _, found = read_probe(written(tmp_path / "p.jsonl", {0: [(1.0, 1.0)]}, read=10))
    heads = by_head(found)
    assert heads[0].rows == 0
    assert verdict(heads) == "all pages were read"


def test_files_that_are_no_probes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    for text, says in {
        "": "it is empty",
        '{"a": 1}\n': "does not say",
        '{"vortex_probe": 1}\n': "line 1: it lacks",
        "no\n": "line 1",
    }.items():
        file.write_text(text)
        assert main(["probe", str(file)]) == 2
        assert says in capsys.readouterr().err
    written(file, {0: [(0.9, 0.9)]})
    whole = file.read_text()
    file.write_text(whole + '{"step": 4, "lay')  # half a line: the engine still writes
    assert main(["probe", str(file)]) == 0
    file.write_text(whole.replace('"tokens": [154]', '"tokens": [154, 3]'))
    capsys.readouterr()
    assert main(["probe", str(file)]) == 2
    assert "line 2: its lists are not of one length" in capsys.readouterr().err


# --- an engine


@pytest.mark.engine
@pytest.mark.full
def test_an_engine_writes_the_masses_of_a_simulation(newest: Lab, tmp_path: Path) -> None:
    file = tmp_path / "probe.jsonl"
    newest.environment["VORTEX_PROBE"] = f"{file}:every 3 steps"
    (asked,) = prompts(11, (150,))
    config = {"flow": "quest", "budget": {"pages": 3}, "dense_layers": [2]}
    reference = {"flow": "quest", "pages": 3, "prompt": asked, "tokens": 20, "masses": True, "dense_layers": [2]}
    done = newest.serve(config, [{"prompts": [asked], "tokens": 20}], [reference])
    tokens, seen = done["references"]
    assert done["passes"][0][0]["ids"] == [token for token, _ in tokens]
    want = {(layer, length): (mass, best) for layer, length, mass, best in seen}
    head, *rest = lines(file)
    assert (head["flow"], head["budget_pages"], head["dense_layers"], head["layers"]) == ("quest", 6, [2], 4)
    assert {x["layer"] for x in rest} == {0, 1, 3}
    assert len({x["step"] for x in rest}) >= 6
    compared = 0
    for line in rest:
        assert line["requests"][0]
        assert not line["requests"][0].startswith("row")
        for h, (mass, best) in enumerate(zip(line["mass"][0], line["best"][0], strict=True)):
            expected = want.get((line["layer"], line["tokens"][0]))  # overlap runs a step that nobody asked for
            if expected is not None:
                compared += 1
                assert mass == pytest.approx(expected[0][h], abs=2e-4)
                assert best == pytest.approx(expected[1][h], abs=2e-4)
    assert compared >= 5 * 3 * 2

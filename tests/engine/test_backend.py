"""Rules that no engine on a CPU shows broken, batch by batch: what graphs, overlap and fused kernels ask for.

Stand-ins take SGLang's place. Each test makes the same tokens twice, once in the plain way.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.standins import KV_HEADS, SPEC, Mode, SharedReadEnds, World, stood_in
from vortex.budget import Budget
from vortex.errors import VortexError
from vortex.runtime.calls import Call
from vortex.runtime.compiled import COMPILER, ModelShape, artifact_for
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.sglang.memory import add_summaries


@pytest.fixture(autouse=True)
def _standing_in() -> Iterator[None]:
    with stood_in():
        yield


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ready(artifact: Path, requests: list[int], version: str = "0_5_23") -> tuple[World, torch.Generator]:
    """Each request has read 150 tokens, in chunks that end within a page, and owns pages in disorder."""
    world, draw = World(artifact, version), drawn()
    for r in requests:
        world.give(r, list(range(r + 1, 45, 4)))
    for new in (70, 80):
        world.read(requests, new, draw)
    return world, draw


def same(got: list[torch.Tensor], want: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# --- fused RoPE and KV writes


def test_pages_that_rope_fills_are_summarised(artifact: Path) -> None:
    said, worlds = [], []
    for fused in (False, True):
        world, draw = World(artifact), drawn()
        world.give(1, list(range(20, 9, -1)))
        world.read([1], 70, draw, fused)
        world.read([1], 80, draw, fused)
        said.append([world.say([1], draw, fused) for _ in range(20)])  # over two page boundaries
        worlds.append(world.summaries())
    assert all(map(same, *said))
    assert same(list(worlds[0].values()), list(worlds[1].values()))


def test_what_is_left_out_depends_on_summaries(artifact: Path) -> None:
    """The others could not fail otherwise."""
    (one, draw), (other, again) = ready(artifact, [1]), ready(artifact, [1])
    assert same(one.say([1], draw), other.say([1], again))
    for field in other.fields.values():
        field.copy_(field.flip(0))
    (sparse, dense), (lost, kept) = one.say([1], draw), other.say([1], again)
    assert not torch.equal(sparse, lost)
    assert torch.equal(dense, kept)


# --- graphs: padded rows, and a page table that is rewritten while kernels run


def replayed(world: World, requests: list[int], rows: int) -> SimpleNamespace:
    """A decode batch of graph size ``rows``, as SGLang pads it: request row 0, slot 0, the backend's own length."""
    batch = world.batch(Mode.DECODE, requests, 1)
    missing = rows - len(requests)
    fill = torch.full((missing,), world.backend.get_cuda_graph_seq_len_fill_value())
    nothing = torch.zeros(missing, dtype=torch.int64)
    batch.batch_size, batch.num_padding = rows, missing
    batch.req_pool_indices = torch.cat((batch.req_pool_indices, nothing))
    batch.seq_lens = torch.cat((batch.seq_lens, fill))
    batch.out_cache_loc = torch.cat((batch.out_cache_loc, nothing))
    return batch


def captured(world: World, rows: int) -> None:
    """As SGLang captures a graph of this size, without a request."""
    world.backend.init_cuda_graph_state(rows, rows)
    dummy = SimpleNamespace(
        forward_mode=Mode.DECODE,
        batch_size=rows,
        req_pool_indices=torch.zeros(rows, dtype=torch.int64),
        seq_lens=torch.full((rows,), world.backend.get_cuda_graph_seq_len_fill_value()),
        out_cache_loc=torch.zeros(rows, dtype=torch.int64),
    )
    world.backend.init_forward_metadata_out_graph(dummy, in_capture=True)
    world.backend.init_forward_metadata_in_graph(dummy)
    world.forward(dummy, drawn(9))


def test_padded_rows_touch_nothing_but_the_dummies(artifact: Path) -> None:
    requests = [2, 1, 3]
    world, _ = ready(artifact, requests)
    plain, _ = ready(artifact, requests)
    captured(world, 8)
    for k, v in world.pool.buffers:  # what a padded row leaves in page 0 reaches no request
        k[: SPEC.page_size], v[: SPEC.page_size] = torch.nan, torch.nan
    for step in range(20):
        # the first rows of a larger draw are not those of a smaller one: the plain batch is given the same rows
        batch = replayed(world, requests, 8)
        world.backend.init_forward_metadata_out_graph(batch)
        world.backend.init_forward_metadata_in_graph(batch)
        got = world.forward(batch, drawn(step))
        want = _first_rows(plain, requests, drawn(step), 8)
        assert same([out[: len(requests)] for out in got], want)
    assert same(list(world.summaries().values()), list(plain.summaries().values()))
    for ours, theirs in zip(world.pool.buffers, plain.pool.buffers, strict=True):
        assert same([b[SPEC.page_size :] for b in ours], [b[SPEC.page_size :] for b in theirs])


def _first_rows(world: World, requests: list[int], draw: torch.Generator, rows: int) -> list[torch.Tensor]:
    """A step without graphs over the first of ``rows`` tokens that ``draw`` says."""
    batch = world.batch(Mode.DECODE, requests, 1)
    world.backend.init_forward_metadata(batch)
    made = []
    for layer in world.layers:
        both = torch.randn(rows, 8 + 2 * KV_HEADS, SPEC.head_dim, generator=draw)[: len(requests)]
        q, k, v = both.split((8, KV_HEADS, KV_HEADS), dim=1)
        made.append(world.backend.forward_decode(q.flatten(1), k, v, layer, batch))
    return made


@pytest.mark.parametrize("version", ["0_5_16", "0_5_23"])
def test_the_page_table_may_be_rewritten_while_a_graph_runs(artifact: Path, version: str) -> None:
    requests = [1, 2]
    world, draw = ready(artifact, requests, version)
    plain, again = ready(artifact, requests, version)
    captured(world, 2)
    for _ in range(20):
        batch = world.batch(Mode.DECODE, requests, 1)
        world.backend.init_forward_metadata_out_graph(batch)
        before = world.req_to_token.clone()
        world.req_to_token.copy_(world.req_to_token.flip(1).roll(1, 0))  # the scheduler is a step ahead
        world.backend.init_forward_metadata_in_graph(batch)
        assert same(world.forward(batch, draw), plain.say(requests, again))
        world.req_to_token.copy_(before)


def test_when_shared_memory_has_been_read_is_declared_where_it_can_be(artifact: Path) -> None:
    backend = World(artifact, "0_5_23").backend
    assert backend.shared_read_ends(Mode.DECODE) is SharedReadEnds.PRE_REPLAY
    assert backend.shared_read_ends(Mode.EXTEND) is SharedReadEnds.UNKNOWN
    oldest = importlib.import_module("vortex.runtime.sglang.seam_0_5_16")
    assert not hasattr(oldest.Backend, "shared_read_ends")


# --- overlap


def test_the_step_after_a_requests_end_leaves_nothing_to_the_next_owner(artifact: Path) -> None:
    """The scheduler learns late that request 1 has ended: its pages are free when it decodes once more."""
    used, draw = ready(artifact, [1])
    for _ in range(10):
        used.say([1], draw)  # the last one fills a page
    assert used.lengths[1] % SPEC.page_size == 0
    fresh = World(artifact)
    said = []
    for world in (used, fresh):
        draw = drawn(5)
        world.give(2, list(range(2, 45, 4)))  # the pages that request 1 had
        world.read([2], 150, draw)
        said.append([world.say([2], draw) for _ in range(12)])
    assert all(map(same, *said))


# --- what one sees of it


def test_debug_logs_and_statistics_count_the_same_and_nothing_else_is_counted(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert World(artifact).backend._stats is None
    monkeypatch.setenv("VORTEX_STATS", str(tmp_path / "stats.json"))
    with caplog.at_level(logging.DEBUG, "vortex.runtime.sglang.stats"):
        world, draw = ready(artifact, [1, 2])
        world.say([1, 2], draw)
        launched = []
        run = Call.run
        monkeypatch.setattr(Call, "run", lambda call, given: (launched.append(call), run(call, given)))
        world.say([1], draw)
        monkeypatch.delenv("VORTEX_STATS")
        assert World(artifact).backend._stats is not None  # the log alone is enough
    lines = [record.getMessage() for record in caplog.records if "decode" in record.getMessage()]
    # 151 and 152 tokens are ten pages, of which two are kept by score, the first and the last two
    want = ["2 requests decode, 10 of their 20 pages are read", "1 requests decode, 5 of their 10 pages are read"]
    assert [line.removeprefix("vortex: ") for line in lines] == want
    seen = json.loads((tmp_path / "stats.json").read_text())
    assert (seen["decode_steps"], seen["pages"], seen["pages_kept"]) == (2, 30, 15)
    assert seen["launches_per_step"] == len(launched)
    page = 2 * SPEC.page_size * SPEC.head_dim * 4 * KV_HEADS  # bytes of a page's K and V, all heads
    scored = 3 * 7 * 2 * SPEC.head_dim * 4 * KV_HEADS  # two rows of summaries for each candidate
    assert seen["bytes_saved"] == 15 * page - scored  # of one sparse layer
    assert '"quest_select": {' in caplog.text
    told = documented("launches_per_step")
    assert seen.keys() <= told
    assert {"selected_share", "from", "bytes_per_page"} <= told
    facts = documented("select_every")
    assert world.backend.about.facts().keys() <= facts


def documented(key: str) -> set[str]:
    """All that stands as code in the table of the page which has ``key`` in its first column."""
    text = (Path(__file__).parents[2] / "docs/sglang.md").read_text(encoding="utf-8")
    (table,) = (block for block in text.split("\n\n") if re.search(rf"^\| `{key}` \|", block, re.MULTILINE))
    return set(re.findall("`([a-z_]+)`", table))


def test_statistics_that_cannot_be_written_any_more_are_warned_of_once(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stats = importlib.import_module("vortex.runtime.sglang.stats")
    folder = tmp_path / "gone"
    monkeypatch.setenv("VORTEX_STATS", str(folder / "stats.json"))
    assert "No such file or directory" in refused(stats.refuse_path)
    monkeypatch.setenv("VORTEX_STATS", str(tmp_path))
    assert "Is a directory" in refused(stats.refuse_path)
    monkeypatch.setenv("VORTEX_STATS", os.devnull)
    assert "a device or pipe is no plain file" in refused(stats.refuse_path)
    monkeypatch.setenv("VORTEX_STATS", str(folder / "stats.json"))
    folder.mkdir()
    stats.refuse_path()
    assert not list(folder.iterdir())
    world, draw = ready(artifact, [1, 2])
    folder.rmdir()
    for _ in range(2):
        world.say([1, 2], draw)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [
        f"vortex: no more statistics are written (VORTEX_STATS), serving goes on: '{folder / 'stats.json'}' cannot be "
        "written: No such file or directory"
    ]


def refused(call: Any) -> str:
    with pytest.raises(VortexError) as raised:
        call()
    assert raised.value.code == "VX7004"
    return str(raised.value)


# --- memory


def test_summaries_are_counted_in_the_price_of_a_token(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_CONFIG", f'{{"flow": "{artifact}", "dense_layers": [1, 9]}}')
    runner = World(artifact).runner
    kvc = SimpleNamespace(**vars(runner), layer_info=SimpleNamespace(start_layer=0, end_layer=4))
    # two rows of 64 f32 a page of 16 tokens and KV head, in the three of four layers that the flow does not skip
    assert add_summaries(1000, None, kvc, 4) == 1000 + 2 * 64 * 4 * KV_HEADS * 3 // 16
    kvc.server_args.attention_backend = "triton"
    assert add_summaries(1000, None, kvc, 4) is None


# --- budgets by layer and head


def test_a_table_in_the_configuration_is_that_of_a_decoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The backend's layers attend to what a Decoder with the same Budget makes of the same pools."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(COMPILER, sys.executable)
    made = artifact_for("quest", ModelShape(replace(SPEC, budget_table=True), KV_HEADS), "cpu")
    table = [[1, 4], [3, 0]]
    world, draw = World(made, dense_layers=[], budget={"table": table}), drawn()
    for r in (1, 2):
        world.give(r, list(range(r + 1, 45, 4)))
    world.read([1, 2], 150, draw)
    alone = load(made, budget=Budget(table=table), debug=True)
    for number, layer in world.backend._layers.items():
        alone.bind(number, layer.k, layer.v, layer.fields)
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    decode = Decoder.decode

    def decoded(self: Decoder, layer: int, q: torch.Tensor, *, out: torch.Tensor, **how: Any) -> None:
        decode(self, layer, q, out=out, **how)
        seen.append((layer, q, out))

    monkeypatch.setattr(Decoder, "decode", decoded)
    world.say([1, 2], draw)
    monkeypatch.setattr(Decoder, "decode", decode)
    step = world.backend._eager
    alone.plan(step.lengths, step.table)
    assert [layer for layer, _, _ in seen] == [0, 1]
    for layer, q, out in seen:
        want = torch.empty_like(out)
        alone.decode(layer, q, out=want)
        assert torch.equal(out, want)
        assert alone.counts is not None
        assert alone.counts.tolist() == [[own + 3 for own in table[layer]]] * 2
    with pytest.raises(VortexError, match="the table has 3 layers, and the model has 2"):
        World(made, budget={"table": [1, 2, 3]})


# --- what requests choose for themselves

CHOICES: dict[int, Any] = {1: {"vortex": {"pages": 4}}, 2: {"vortex": {"dense": True}, "__req__": 5}, 3: None}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv(COMPILER, sys.executable)
        return artifact_for("quest", ModelShape(replace(SPEC, request_budgets=True), KV_HEADS), "cpu")


def prompted(world: World, requests: list[int], choices: dict[int, Any]) -> torch.Generator:
    """As :func:`ready`, told what requests chose before each pass over prompts."""
    draw = drawn()
    for r in requests:
        world.give(r, list(range(r + 1, 45, 4)))
    for new in (70, 80):
        world.backend.learn_choices(torch.tensor(requests), [choices.get(r) for r in requests])
        world.read(requests, new, draw)
    return draw


def test_each_request_of_a_graph_decodes_as_a_server_of_its_budget_would(chosen: Path, artifact: Path) -> None:
    requests = [2, 1, 3]
    world = World(chosen, per_request={"dense": True})
    prompted(world, requests, CHOICES)
    alone = {r: World(artifact, pages=pages) for r, pages in ((1, 4), (2, 1000), (3, 2))}
    for other in alone.values():
        prompted(other, requests, {})
    captured(world, 8)
    for step in range(20):
        batch = replayed(world, requests, 8)
        world.backend.init_forward_metadata_out_graph(batch)
        world.backend.init_forward_metadata_in_graph(batch)
        got = world.forward(batch, drawn(step))
        for r, other in alone.items():
            want = _first_rows(other, requests, drawn(step), 8)
            at = requests.index(r)
            assert same([out[at] for out in got], [out[at] for out in want]), (step, r)
    world.backend.learn_choices(torch.tensor([2]), [None])  # who has the row next has chosen nothing
    assert world.backend.chosen.rows[2].tolist()[0] == -1


def test_what_requests_chose_is_counted(chosen: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VORTEX_STATS", str(tmp_path / "stats.json"))
    world = World(chosen, per_request={"dense": True})
    draw = prompted(world, [1, 2, 3], CHOICES)
    world.say([1, 2, 3], draw)
    seen = json.loads((tmp_path / "stats.json").read_text())
    assert (seen["pages"], seen["pages_kept"]) == (30, 7 + 10 + 5)
    world.say([3, 2], draw)
    seen = json.loads((tmp_path / "stats.json").read_text())
    assert (seen["pages"], seen["pages_kept"]) == (50, 22 + 10 + 5)


def test_what_came_past_the_check_decodes_by_the_servers_budget(chosen: Path, artifact: Path) -> None:
    wrong = {1: {"vortex": {"pages": 9}}, 2: {"vortex": {"pages": -4}}, 3: {"vortex": "dense"}}
    world, plain = World(chosen, per_request={"pages": 8}), World(artifact)
    draw, again = prompted(world, [1, 2, 3], wrong), prompted(plain, [1, 2, 3], {})
    for _ in range(3):
        assert same(world.say([1, 2, 3], draw), plain.say([1, 2, 3], again))


# --- reused selections


def test_layers_reuse_selections_as_configured(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 0 selects in each third step and after a prompt; layer 1 attends to its pages."""
    asked: list[tuple[int, int | None, int]] = []
    selected: list[int] = []
    decode, select = Decoder.decode, Decoder._select

    def decoded(self: Decoder, layer: int, *args: Any, **how: Any) -> None:
        asked.append((layer, how.get("pages_of"), how.get("every", 1)))
        decode(self, layer, *args, **how)

    def chosen(self: Decoder, step: Any, layer: int, *args: Any) -> None:
        selected.append(layer)
        select(self, step, layer, *args)

    monkeypatch.setattr(Decoder, "decode", decoded)
    monkeypatch.setattr(Decoder, "_select", chosen)
    world, draw = World(artifact, dense_layers=[], every=3, layers={"1": 0}), drawn()
    world.give(1, list(range(20, 9, -1)))
    world.read([1], 150, draw)
    for _ in range(7):
        said = world.say([1], draw)
        assert all(x.isfinite().all() for x in said)
    assert selected == [0, 0, 0]
    assert asked == [(0, None, 3), (1, 0, 1)] * 7
    world.give(2, list(range(30, 21, -1)))
    world.read([2], 20, draw)
    world.say([1], draw)
    assert selected == [0] * 4

"""``vortex run --trace`` and ``vortex trace``: what is in the file beside what the kernels read, what the figures and
pictures say of it beside a plain count, and files that are none.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Vortex
from vortex.budget import Budget
from vortex.check.page_trace import trace_planted
from vortex.check.synthetic_batch import Trial
from vortex.page_traces.figures import figures_of
from vortex.page_traces.pictures import LEVELS, MISSED, Picture, by_head, by_step, pages_of
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.page_trace import PagesRead, Recorded, StepTimes, Writer

STEPS, LAYERS, HEADS = 3, 2, 2


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def recorded(**more: Any) -> Recorded:
    given: dict[str, Any] = {"source": "SGLang", "flow": "quest", "target": "cpu", "page_size": 16, "block_size": 16}
    given |= {"budget_pages": 6, "budget_tokens": 96, "layers": 4, "kv_heads": 2}
    return Recorded(**given | more)


def read(step: int, layer: int, which: Sequence[Sequence[int]], pages: int = 10, **more: Any) -> PagesRead:
    """Of one request, ``r``."""
    listed = tuple(tuple(row) for row in which)
    return PagesRead(step, layer, ("r",), (16 * pages,), (pages,), (listed,), **more)


# --- what a run records


@pytest.fixture(scope="module")
def decoder(compiled: Path) -> Decoder:
    return load(compiled / "quest.vxa", target="cpu", budget=Budget(9))


@pytest.fixture(scope="module")
def traced(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two requests, one of which reads all its pages, with attention mass."""
    file = tmp_path_factory.mktemp("traced") / "trace.jsonl"
    trace_planted(decoder, file, [40, 700], kv_heads=HEADS, layers=LAYERS, steps=STEPS, seed=3, mass=True)
    return file


def test_a_trace_holds_what_the_same_steps_read_without_it(decoder: Decoder, traced: Path) -> None:
    head, *rest = lines(traced)
    assert (head["vortex_trace"], head["source"], head["flow"], head["every"]) == (1, "vortex run", "quest", 2)
    assert (head["budget_pages"], head["budget_tokens"], head["kv_heads"], head["layers"]) == (12, 192, HEADS, LAYERS)
    trial = Trial(decoder, HEADS, 100, seed=3, layers=LAYERS)
    for name, tokens in (("r0", 40), ("r1", 700)):
        trial.join(name, tokens)
    reads = {(x["step"], x["layer"]): x for x in rest if "layer" in x}
    assert set(reads) == {(step, layer) for step in (2, 4, 6) for layer in range(LAYERS)}
    for step in range(1, 2 * STEPS + 1):
        trial.step()
        for layer in range(LAYERS) if step % 2 == 0 else ():
            found = reads[step, layer]
            pages, counts = trial.selected[layer]
            want = [[pages[r, h, : counts[r, h]].tolist() for h in range(HEADS)] for r in range(2)]
            assert found["which"] == want
            assert (found["requests"], found["tokens"]) == (["r0", "r1"], [40 + step, 700 + step])
            for r, name in enumerate(trial.requests):
                keys, _ = trial.keys_and_values(name, layer)
                q = trial.q[layer][r].float().view(HEADS, -1, keys.shape[-1])
                for h in range(HEADS):
                    weights = torch.softmax(q[h] @ keys[:, h].T * trial.scale, -1).mean(0)
                    by_page = [float(x.sum()) for x in weights.split(16)]
                    assert found["held"][r][h] == pytest.approx([by_page[p] for p in want[r][h]], abs=1e-5)
                    assert found["mass"][r][h] == pytest.approx(sum(found["held"][r][h]), abs=1e-4)
                    # the first page and the last two are read whatever they hold
                    others = sorted(by_page[1:-2])[::-1][: len(want[r][h]) - 3]
                    best = by_page[0] + sum(by_page[-2:]) + sum(others)
                    assert found["best"][r][h] == pytest.approx(best, abs=1e-5)


def test_heavy_pages_are_needles_and_quest_finds_them(traced: Path) -> None:
    figures = figures_of(traced)
    needles = lines(traced)[1]["needles"]
    assert [len(pages) for pages in needles[1]] == [8, 8]
    assert all(x.needles > 0.95 and x.mass > 0.95 for x in figures.layers)
    # mass is told of rows that left pages out, half of them
    assert all((x.rows, x.partial) == (2 * HEADS * STEPS, HEADS * STEPS) for x in figures.layers)


def test_kernels_and_steps_are_timed(decoder: Decoder, traced: Path) -> None:
    times = [x for x in lines(traced) if "recorded" in x]
    assert [x["step"] for x in times] == [2, 4, 6]
    for x in times:
        assert list(x["kernels"]) == [k.name for k in decoder.library.target.kernels]
        assert 0 < sum(x["kernels"].values()) < x["recorded"]
        assert x["unrecorded"] > 0
    figures = figures_of(traced)
    assert figures.recorded == pytest.approx(sorted(x["recorded"] for x in times)[1])
    assert figures.overhead == pytest.approx(figures.recorded / figures.unrecorded - 1)
    assert f"adds {100 * figures.overhead:.0f} % to one step in 2" in figures.cost()


def test_the_command_line(vortex: Vortex, compiled: Path, traced: Path, tmp_path: Path) -> None:
    args = ("run", f"{compiled}/quest.vxa", "--tokens", "300", "--steps", "2", "--pages", "4")
    assert vortex(*args, "--trace", "t.jsonl").code == 0
    assert "mass" not in lines(tmp_path / "t.jsonl")[1]
    told = vortex("trace", "t.jsonl", "-o", "t.html")
    assert (told.code, told.err) == (0, "wrote t.html\n")
    assert told.out.startswith("flow quest on cpu, by vortex run: of a long context a KV head reads 7 pages of 16")
    assert "needles" in told.out
    assert "select" in told.out
    made = json.loads(vortex("trace", str(traced), "--json").out)
    assert (made["schema"], made["steps"], made["ended"]) == (1, STEPS, "")
    assert [r["name"] for r in made["requests"]] == ["r0", "r1"]
    assert set(made["layers"][0]) - {"heads"} == set(made["layers"][0]["heads"][0]) - {"head"} | {"layer"}
    for wrong, says in (
        ((*args, "--trace", "no/such/t.jsonl"), "VX7004"),
        ((*args, "--trace-mass"), "add --trace FILE"),
        (("trace", "t.jsonl", "-o", "t.jsonl"), "is no .html"),
        (("trace", "none.jsonl"), "VX7002"),
    ):
        result = vortex(*wrong)
        assert (result.code, says in result.err) == (2, True), result.err


# --- what is said of it


def counted(file: Path) -> Path:
    """Three steps of one request, heads 5 and 6 of the model; of layer 1 the second head misses a needle."""
    writer = Writer(file, recorded(first_head=5, mass=True, every=20))
    mass = {"mass": ((0.5, 0.75),), "best": ((0.75, 0.75),)}
    needles = {"needles": (((2, 7), (7,)),)}
    for step, first in ((20, [0, 2, 7, 9]), (40, [0, 2, 8, 9]), (60, [0, 2, 7, 9])):
        held = {"held": ((tuple(0.125 for _ in first), (0.25, 0.25, 0.25)),)}
        writer.add([read(step, 1, (first, [0, 3, 9]), **mass, **held, **needles), read(step, 3, (range(10), [4]))])
        writer.add([StepTimes(step, step / 1e4, None if step == 20 else 1e-3, {"attend": step / 1e5})])
    return file


def test_figures_are_what_a_count_by_hand_gives(tmp_path: Path) -> None:
    figures = figures_of(counted(tmp_path / "t.jsonl"))
    one, two = figures.heads[1]
    assert (one.head, two.head, one.rows, one.partial) == (5, 6, 3, 3)
    assert (one.read, two.read, figures.layers[0].read) == (0.4, 0.3, 0.35)
    assert (one.again, two.again) == (6 / 8, 1.0)
    assert (one.mass, one.best, two.mass) == (0.5, 0.75, 0.75)
    assert (one.needles, one.complete, two.needles, two.complete) == (5 / 6, 2 / 3, 0.0, 0.0)
    all_pages, _ = figures.heads[3]
    assert (all_pages.read, all_pages.partial, all_pages.mass == all_pages.mass) == (1.0, 0, False)
    assert (figures.recorded, figures.unrecorded, figures.kernels) == (4e-3, 1e-3, {"attend": 4e-4})
    assert figures.cost().endswith("recording adds 300 % to one step in 20.")


def pixels(png: bytes) -> list[bytes]:
    """Rows of a PNG's palette numbers, read as the format says."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(png):
        size = struct.unpack(">I", png[at : at + 4])[0]
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        parts[kind] = data
        at += 12 + size
    width, height, *form = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert form == [8, 3, 0, 0, 0]
    raw = zlib.decompress(parts[b"IDAT"])
    rows = [raw[y * (width + 1) : (y + 1) * (width + 1)] for y in range(height)]
    assert {row[0] for row in rows} == {0}
    alphas = list(parts[b"tRNS"])
    assert (alphas[0], alphas[LEVELS], alphas == sorted(alphas)) == (0, 255, True)
    return [row[1:] for row in rows]


def test_pictures_show_how_often_pages_were_read(tmp_path: Path) -> None:
    request = pages_of(counted(tmp_path / "t.jsonl"), ["r"])["r"]
    first, second, *_ = pixels(by_head(request).png())
    third = -(-LEVELS // 3)
    assert list(first) == [LEVELS, 0, LEVELS, 0, 0, 0, 0, -(-2 * LEVELS // 3), third, LEVELS]
    assert list(second) == [LEVELS, 0, 0, LEVELS, 0, 0, 0, MISSED, 0, LEVELS]
    assert by_head(request).needles[:2] == ((2, 7), (7,))
    mass = pixels(by_head(request, mass=True).png())[1]
    assert [i for i, x in enumerate(mass) if x] == [0, 3, 9]
    assert mass[0] == -(-LEVELS // 2)  # the square root of a quarter
    picture, steps = by_step(request, 1)
    assert steps == [20, 40, 60]
    assert [row[8] for row in pixels(picture.png())] == [0, -(-LEVELS // 2), 0]


def test_long_contexts_share_columns_and_show_the_page_that_was_read_most(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "t.jsonl", recorded())
    for step in (1, 2):
        writer.add([read(step, 0, ([0, 5, 997 + step], [999]), pages=1000)])
    picture = by_head(pages_of(tmp_path / "t.jsonl", ["r"])["r"])
    first, second = picture.levels
    assert (picture.per_column, picture.columns) == (3, 334)
    assert [(i, x) for i, x in enumerate(first) if x] == [(0, LEVELS), (1, LEVELS), (332, 18), (333, 18)]
    assert [i for i, x in enumerate(second) if x] == [333]


def test_a_page_stays_small_and_no_text_of_a_trace_is_html(vortex: Vortex, tmp_path: Path) -> None:
    bad = '<script>alert("1")</script>'
    writer = Writer(tmp_path / "t.jsonl", recorded(flow=bad, target=bad, source=bad, kv_heads=8, layers=40))
    for layer in range(40):
        names = tuple(f"{bad}{n}" for n in range(6))
        rows = tuple(tuple(tuple(range(h, 4000, 97 + layer + h)) for h in range(8)) for _ in names)
        writer.add([PagesRead(1, layer, names, (64000,) * 6, (4000,) * 6, rows)])
    writer.add([StepTimes(1, 0.1, 0.1, {bad: 0.1})])
    assert vortex("trace", "t.jsonl", "-o", "t.html").code == 0
    text = (tmp_path / "t.html").read_text()
    assert len(text) < 2_000_000
    assert "4 requests are drawn of 6" in text
    assert "alert(" in text
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert not re.search(r'(?:src|href)="(?!data:image/png)', text)


def test_a_number_of_pages_that_nobody_has_takes_no_memory(vortex: Vortex, tmp_path: Path) -> None:
    Writer(tmp_path / "t.jsonl", recorded()).add([read(1, 0, ([0], [2**27 - 2]), pages=2**27 - 1)])
    assert vortex("trace", "t.jsonl", "-o", "t.html").code == 0


def test_digits_stand_for_levels() -> None:
    assert Picture((bytes([0, 9, 10, LEVELS, MISSED]),), 1).digits() == ["09az."]


# --- the file


def test_a_file_ends_at_its_limit_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    writer = Writer(file, recorded(), limit=1)
    for step in range(400):
        writer.add([read(step, 0, (range(900), range(900)), pages=1000)])
    assert writer.full
    assert 900_000 < file.stat().st_size < 1_001_000
    figures = figures_of(file)
    assert figures.ended == "the limit of 1 MB was reached"
    assert 100 < figures.steps < 400


def test_files_that_are_no_traces_are_told(vortex: Vortex, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    for text, says in {
        "": "it is empty",
        '{"vortex_probe": 1}\n': "does not say",
        '{"vortex_trace": 1}\n': "line 1: it lacks",
        "no\n": "line 1: it is not JSON",
    }.items():
        file.write_text(text)
        result = vortex("trace", "t.jsonl")
        assert (result.code, says in result.err) == (2, True), result.err
    file.write_bytes(b"\xff\xfe")
    assert "is not text" in vortex("trace", "t.jsonl").err
    whole = counted(file).read_text()
    file.write_text(whole + '{"step": 4, "lay')  # half a line: who writes it still runs
    assert vortex("trace", "t.jsonl").code == 0
    file.write_text(whole.splitlines()[0] + "\n")
    says = "no step was recorded yet: one decode step in 20 is; VORTEX_TRACE='t.jsonl:every 1 step' looks at more\n"
    assert says in vortex("trace", "t.jsonl", "-o", "t.html").out
    file.write_text(recorded(source="vortex run", every=2).line())
    assert "no step was recorded yet\n" in vortex("trace", "t.jsonl").out
    for old, new, says in (
        ('"tokens":[160]', '"tokens":[160,3]', "line 2: its lists are not of one length"),
        ("[0,3,9]", "[0,3,99]", "line 2: pages of request 0, head 1 are not ascending numbers below 10"),
        ("[0,3,9]", "[3,0,9]", "ascending"),
        ("[[[0,2,7,9],[0,3,9]]]", "[[[0,2,7,9]]]", "line 2: it has not 2 KV heads, as line 1 says"),
        ("[[0.5,0.75]]", "[[0.5]]", "line 2: its lists are not of one length"),
        ('"pages":[10]', '"pages":[0]', "pages[0] is 0"),
        ('"recorded":0.002', '"recorded":"x"', "line 4: recorded is 'x'"),
        ('"block_size":16', '"block_size":0', "line 1: block_size is 0"),
    ):
        assert old in whole
        file.write_text(whole.replace(old, new, 1))
        result = vortex("trace", "t.jsonl")
        assert (result.code, says in result.err) == (2, True), result.err

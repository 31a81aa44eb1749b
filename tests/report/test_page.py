"""The page: one file that reaches for nothing, believes no text, and holds what the model says."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import shutil
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.html_reader import Reader
from tests.report.conftest import EVIL, FLOW, Made
from vortex.cli.main import INTERNAL_ERROR, USER_ERROR, main
from vortex.report.model import Compilation, Report, Source
from vortex.report.page import html

VOID = ("meta", "br", "input")
SHAPE = ("--shape", "batch=2,kv_heads=1,tokens=512,kept=8")


def packed(text: str) -> Any:
    """The data of a page, as the page's script reads it."""
    [data] = re.findall(r'<script type="text/plain" id="data">(.*?)</script>', text)
    return json.loads(gzip.decompress(base64.b64decode(data)))


def test_the_page_is_well_formed_and_reaches_for_nothing(page: Path) -> None:
    text = page.read_text("utf-8")
    reader = Reader(text, VOID)
    assert not reader.open
    assert len(reader.scripts) == 2, "the data and the script: no text has become a third"
    for tag, attrs in reader.seen:
        assert not {"src", "href", "srcset", "action"} & attrs.keys(), tag
        assert not [name for name in attrs if name.startswith("on")], tag
        assert tag not in {"img", "link", "iframe", "object", "base"}
    assert not re.search(r"\bfetch\(|XMLHttp|WebSocket|@import|url\(|import\(", reader.scripts[1])
    assert "default-src 'none'" in text


def test_names_from_a_dump_by_hand_are_text(compilation: Compilation) -> None:
    fields = {"name": EVIL, "command": EVIL, "path": EVIL, "error": EVIL, "status": "failed", "workload": EVIL}
    drawings = compilation.drawings
    texts = {"versions": {EVIL: EVIL}, "verdict": (EVIL,), "sources": (Source(EVIL, (), EVIL),), "drawings": drawings}
    text = html(Report((replace(compilation, **fields, **texts),)))
    assert len(Reader(text, VOID).scripts) == 2
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)" in text


def test_the_page_holds_the_texts_and_places_of_the_model(page: Path, compilation: Compilation) -> None:
    found = packed(page.read_text("utf-8"))
    [told] = found["report"]["compilations"]
    lines, kin = found["lines"], found["kin"]
    assert len(set(lines)) == len(lines)
    for packed_text, text in zip(told["texts"], compilation.texts, strict=True):
        assert tuple(lines[n] for n in accumulate(packed_text["lines"])) == text.lines
        assert tuple(tuple(kin[n]) for n in accumulate(packed_text["places"])) == text.places
    assert [lines[n] for n in told["sources"][0]["ids"]] == FLOW.splitlines()


def test_two_compilations_share_their_lines(compilation: Compilation) -> None:
    one, two = html(Report((compilation,))), html(Report((compilation, replace(compilation, name="other"))))
    drawn = sum(len(d.svg) for d in compilation.drawings)
    assert len(two) - drawn < 1.6 * len(one)
    assert len(one) < 300_000


def test_the_command_writes_a_file_and_says_what_is_in_it(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    assert main(["report", str(made.dump), str(made.artifact), *SHAPE, "-o", str(out)]) == 0
    assert "it holds the flow's code and paths of this machine" in capsys.readouterr().err
    assert "einsum" in json.dumps(packed(out.read_text()))


def test_redacted_reports_hold_neither_code_nor_paths(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    assert main(["report", str(made.dump), *SHAPE, "--redact-locs", "-o", str(out)]) == 0
    assert "holds" not in capsys.readouterr().err
    text = out.read_text()
    whole = text + json.dumps(packed(text))
    assert main(["report", str(made.dump), *SHAPE, "--redact-locs", "--json"]) == 0
    whole += capsys.readouterr().out
    for hidden in (str(made.file), str(made.dump), "script>.py", "torch.einsum", "alert(", str(made.file.parents[1])):
        assert hidden not in whole
    assert "flow.dot" in whole


def test_json_is_the_model(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(made.artifact), "--json", *SHAPE]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == 1
    [told] = found["compilations"]
    assert told["form"] == "artifact"
    assert isinstance(told["kernels"][0]["cost"]["read"], float)


def test_what_cannot_be_reported_is_said(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "r.json"
    results.write_text('{"device": "NVIDIA H100", "rows": []}')
    dump = str(made.dump)
    for arguments, why in (
        ([str(tmp_path / "none")], "does not exist: an artifact or a dump folder is needed"),
        ([str(tmp_path)], "has no manifest"),
        ([dump, dump, dump], "3 are given"),
        ([dump, "--results", str(results)], "measured on 'NVIDIA H100', and the compilation is for H200"),
        ([dump, "--shape", "batch=0"], "batch"),
        ([dump, "-o", str(tmp_path / "no" / "r.html")], "cannot be written"),
    ):
        assert main(["report", *SHAPE, *arguments]) == USER_ERROR
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    "seed", [0, 6, *(pytest.param(n, marks=pytest.mark.full) for n in (*range(1, 6), *range(7, 12)))]
)
def test_a_broken_dump_gives_a_report_or_a_sentence(
    made: Made, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files cut, lines of IR lost or doubled, values of the manifest replaced."""
    draws = random.Random(seed)
    broken = tmp_path / "broken"
    shutil.copytree(made.dump, broken)
    for _ in range(draws.randrange(1, 3)):
        file = draws.choice([f for f in broken.iterdir() if f.suffix in (".page", ".flow", ".json", ".tir")])
        text = file.read_text()
        lines = text.splitlines(keepends=True)
        at = draws.randrange(len(lines))
        match draws.randrange(4):
            case 0:
                file.write_text(text[: draws.randrange(len(text))])
            case 1:
                file.write_text("".join(lines[:at] + lines[at + 1 :]))
            case 2:
                file.write_text(text.replace(draws.choice(["16", "128", '"select"', '"rows"', "bf16"]), "-1", 1))
            case 3:
                file.unlink()
    code = main(["report", str(broken), *SHAPE, "-o", str(tmp_path / "r.html")])
    assert code != INTERNAL_ERROR
    said = capsys.readouterr().err
    assert "internal error" not in said
    if code:
        assert re.search(r"error\[VX\d+\]: .{10,}", said)
    else:
        assert len(Reader((tmp_path / "r.html").read_text(), VOID).scripts) == 2

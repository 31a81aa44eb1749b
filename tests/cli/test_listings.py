"""Listings for people and for programs."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from tests.tune.records import record
from vortex.cli.error_examples import example
from vortex.cli.exit_codes import EXIT_CODES
from vortex.cli.main import USER_ERROR
from vortex.cli.show import emit_json, plain
from vortex.errors import CATALOGUE, counted
from vortex.tune.store import Store


@pytest.mark.parametrize("name", ["ops", "passes", "kinds", "errors", "targets", "info"])
def test_listing_as_text_and_json(vortex: Vortex, name: str) -> None:
    found = vortex(name)
    assert (found.code, found.err) == (0, "")
    assert len(found.out.splitlines()) > 3
    assert json.loads(vortex(name, "--json").out)
    if name != "info":
        assert vortex("info", name).out == found.out


def test_at_least_45_operations(vortex: Vortex) -> None:
    names = {r["name"].rpartition(".")[2] for r in json.loads(vortex("ops", "--json").out)}
    assert len(names) >= 45
    assert {"softmax", "where", "einsum", "amax", "conv1d"} <= names


def test_ir_operations(vortex: Vortex) -> None:
    names = [r["name"] for r in json.loads(vortex("ops", "--ir", "--json").out)]
    assert {"flow.dot", "flow.topk", "page.load", "page.attend"} <= set(names)


def test_every_error_is_explained(vortex: Vortex) -> None:
    assert [r["code"] for r in json.loads(vortex("errors", "--json").out)] == list(CATALOGUE)
    assert vortex("errors", "vx1002").out.startswith("VX1002: branch on a traced value")


def test_one_pass(vortex: Vortex) -> None:
    found = vortex("passes", "fuse")
    assert found.out.startswith("fuse: reads page IR, exact")
    assert "option max-live" in found.out


@pytest.mark.parametrize("args", [("ops", "sofmax"), ("passes", "fus"), ("errors", "VX1")])
def test_unknown_names(vortex: Vortex, args: tuple[str, str]) -> None:
    found = vortex(*args)
    assert found.code == USER_ERROR
    assert "did you mean" in found.err


def test_plain_table_aligns_numbers_right() -> None:
    text = plain(("name", "n"), [["a", "5"], ["bb", "10"]])
    assert text == "name   n\na      5\nbb    10\n"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "tune.db"
    with Store(path) as store:
        store.put(
            [record(us=1234.5678), record({"warps": 8, "tile": 16, "stages": 3, "overlap": 1}, us=None, status="crash")]
        )
    return path


LISTINGS = ["ops", "ops --ir", "passes", "kinds", "errors", "targets", "info", "db ls", "db best", "info ARTIFACT"]
TEXTS = ["errors VX9004", "toolchain show", "explain-cache quest", "explain ARTIFACT"]


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("listed", [*LISTINGS, *TEXTS])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_broken(
    vortex: Vortex, monkeypatch: pytest.MonkeyPatch, compiled: Path, database: Path, listed: str, columns: int
) -> None:
    words = listed.replace("ARTIFACT", str(compiled / "quest.vxa")).split()
    words += ["--db", str(database)] if words[0] == "db" else []
    whole = vortex(*words).out
    monkeypatch.setenv("COLUMNS", str(columns))
    fitted = vortex(*words).out
    wide = [line for line in fitted.splitlines() if len(line) > columns]
    assert all(len(line.split()) == 1 or max(map(len, line.split())) > columns - 12 for line in wide), wide
    broken = set(fitted.split()) - set(whole.split())
    assert not {word for word in broken if not word.endswith(":")}, "all words were words before"
    assert [n for n in re.findall(r"\d+\.\d+|\d{3,}", whole) if n not in fitted] == []


def test_a_table_that_does_not_fit_is_said_row_by_row() -> None:
    head, rows = ("kernel", "registers", "limiter"), [["select", "118", "memory"], ["attend", "160", "shared memory"]]
    assert plain(head, rows, limit=31) == (
        "kernel  registers  limiter\nselect        118  memory\nattend        160  shared\n                   memory\n"
    )
    assert plain(head, rows, limit=20) == (
        "kernel: select\nregisters: 118\nlimiter: memory\n\nkernel: attend\nregisters: 160\nlimiter: shared\n  memory\n"
    )


def test_errors_are_shown_as_they_may_read() -> None:
    for kind in CATALOGUE.values():
        fields = {n for text in (kind.message, kind.help) for _, n, _, _ in string.Formatter().parse(text) if n}
        message, way_out = example(kind)
        missing = {n for n in fields if f"<{n}>" in message + way_out}
        assert not missing, f"vortex/cli/error_examples.py has no {missing} for {kind.code}"


def test_exit_codes_stand_in_the_help_and_in_the_docs(vortex: Vortex) -> None:
    docs = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"  {code:>3}  {meaning}\n" in vortex("--help").out
        assert f"\n| {code} | {meaning}" in docs


TYPES: dict[str, dict[str, object]] = {
    "ops": {"name": str, "lowers_to": str, "doc": str},
    "ops --ir": {"name": str, "operands": str, "attributes": str, "does": str},
    "kinds": {
        "kind": str, "once for each": str, "launched by": str, "reads pages": str, "time depends on": list,
        "templates": list, "about": str,
    },
    "errors": {"code": str, "severity": str, "what": str, "example": str, "help": str},
    "targets": {
        "target": str, "also": list, "stages": list, "about": str, "SMs": int | None, "TB/s": float | None,
        "shared KiB an SM": int | None, "L2 MiB": int | None, "KiB in flight an SM": int | None,
    },
    "db ls": {
        "id": str, "layer": str, "kind": str, "bucket": str, "target": str, "config": dict, "status": str,
        "us": float | None, "samples": int,
    },
    "db best": {
        "kind": str, "ir": str, "target": str, "bucket": str, "config": dict, "us": float, "of": int, "id": str,
        "layer": str,
    },
}  # fmt: skip
"""The keys of each listing as JSON; docs/cli.md says the same."""


@pytest.mark.parametrize("listed", TYPES)
def test_json_of_listings(vortex: Vortex, database: Path, listed: str) -> None:
    words = [*listed.split(), "--json"]
    rows = json.loads(vortex(*words, *(["--db", str(database)] if words[0] == "db" else [])).out)
    assert rows
    for row in rows:
        assert list(row) == list(TYPES[listed])
        assert all(isinstance(row[k], t) for k, t in TYPES[listed].items()), row  # type: ignore[arg-type]
    documented = next(
        x for x in (Path(__file__).parents[2] / "docs/cli.md").read_text().splitlines() if f"| `{listed}` |" in x
    )
    assert all(f"`{key}`" in documented for key in TYPES[listed])
    if words[0] == "db":
        assert all(len(r["id"]) == len(record().id) for r in rows), "ids are whole"


COMMANDS = {
    "compile": "compile quest --head-dim 64 --to flow -o quest.flow --dump-dir dump",
    "run": "run ARTIFACT --tokens 40 --steps 1",
    "tune": "tune quest --head-dim 64 --target cpu --kinds select --budget 1s --db tune.db",
    "info ARTIFACT": "info ARTIFACT",
    "explain-cache": "explain-cache quest",
    "db explain": "db explain quest --target cpu --db DATABASE",
    "db check": "db check --db DATABASE",
    "passes NAME": "passes schedule",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_of_commands_is_what_the_docs_say(vortex: Vortex, compiled: Path, database: Path, command: str) -> None:
    words = COMMANDS[command].replace("ARTIFACT", str(compiled / "quest.vxa")).replace("DATABASE", str(database))
    found = json.loads(vortex(*words.split(), "--json").out, parse_constant=pytest.fail)
    documented = next(
        x
        for x in (Path(__file__).parents[2] / "docs/cli.md").read_text().splitlines()
        if x.startswith(f"| `{command}` |")
    )
    rows = {"run": found.get("requests"), "db explain": list(found.get("kernels", {}).values())}.get(command)
    for key in [*found, *(rows[0] if rows else ())]:
        assert f"`{key}`" in documented
    if command == "compile":
        assert found["digest"] is None and isinstance(found["own_seconds"], float)


def test_json_has_null_for_what_it_cannot_say(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"gap": float("inf"), "rows": [(1.5, float("nan"))], "path": Path("a")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "gap": None,
        "rows": [[1.5, None]],
        "path": "a",
    }


def test_the_error_of_a_missing_near_is_explained_by_its_code(vortex: Vortex) -> None:
    """docs/flows.md sends whoever mixes S and S1 there."""
    out = vortex("errors", "VX1005").out
    assert "a shortlist: [S] and [S1<=64]" in out and "x[near]" in out


def test_one_is_not_said_as_several() -> None:
    assert [counted(n, "remark") for n in (0, 1, 2)] == ["0 remarks", "1 remark", "2 remarks"]

"""``vortex db``: every verb, on databases made by hand."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from tests.tune.records import record
from vortex.cli.db import VERBS
from vortex.kinds.buckets import bucket_of
from vortex.tune import layers
from vortex.tune.exchange import read_lines, write_lines
from vortex.tune.record import merge
from vortex.tune.store import Store
from vortex.tune.transfer import sha256

RECORDS = [record({"warps": n}, 10.0 - n) for n in (1, 2, 4, 8)] + [
    record({"warps": 3}, status="crash"),
    record({"warps": 1}, 4.0, bucket=bucket_of("attend", 1, 64, 30)),
    record({"threads": 64}, 7.0, kind="select", template="cuda.select@1"),
]


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tune.db"
    monkeypatch.setenv("VORTEX_DB", str(path))
    with Store(path) as store:
        store.put(RECORDS)
    return path


def test_ls_best_show(vortex: Vortex, db: Path) -> None:
    assert len(json.loads(vortex("db", "ls", "--json").out)) == 7
    assert len(json.loads(vortex("db", "ls", "select", "--json").out)) == 1
    assert json.loads(vortex("db", "ls", "--target", "sm_100", "--json").out) == []
    best = json.loads(vortex("db", "best", "--json").out)
    assert [(r["kind"], r["config"], r["of"]) for r in best] == [
        ("attend", {"warps": 1}, 1),
        ("attend", {"warps": 8}, 4),
        ("select", {"threads": 64}, 1),
    ]
    shown = vortex("db", "show", best[1]["id"])
    assert json.loads(shown.out)["config"] == {"warps": 8}
    assert "crash" in vortex("db", "ls").out


def test_best_has_ones_own_together_and_says_what_is_passed_over(
    vortex: Vortex, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shipped records of kinds that come before and after the user's."""
    project = db.parent / ".vortex"
    project.mkdir()
    others = [record({"threads": 64}, 5.0, kind=k, template=f"cuda.{k}@1", ir="vx1:01") for k in ("append", "select")]
    (project / "all.jsonl").write_bytes(write_lines(others))
    quick = record({"warps": 16}, 1.0, spread=1.3)
    with Store(db) as store:
        store.put([quick])
    monkeypatch.setattr(layers, "project_files", lambda: [project / "all.jsonl"])
    found = vortex("db", "best", "--json")
    assert [r["layer"] for r in json.loads(found.out)] == ["user"] * 3 + ["project"] * 2
    assert json.loads(found.out)[1]["config"] == {"warps": 8}, "the steady one"
    assert f"{quick.id[:12]} was faster" in found.err and "1.00 us" in found.err and "1.1 times" in found.err
    only = json.loads(vortex("db", "best", "--layer", "project", "--json").out)
    assert [r["kind"] for r in only] == ["append", "select"]
    assert len(json.loads(vortex("db", "ls", "--layer", "user", "--json").out)) == 8


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (["list"], "VX7003", "did you mean 'ls'"),
        (["ls", "attent"], "VX7003", "did you mean 'attend'"),
        (["show", "zzzz"], "VX7001", "not a record id"),
        (["show", "0" * 32], "VX8006", "no record"),
        (["show"], "VX7001", "required: ID"),
        (["import"], "VX7001", "required: FILE"),
        ([], "VX7001", "required: VERB"),
        (["ls", "--keep", "3"], "VX7001", "--keep: is not an option of 'vortex db ls'"),
        (["best", "--jsn"], "VX7001", "did you mean '--json'"),
        (["ls", "select", "attend"], "VX7001", "one argument too many"),
        (["show", "0" * 32, "--target", "cpu"], "VX7001", "--target: is not an option"),
        (["prune", "select"], "VX7001", "one argument too many"),
        (["import", "x.jsonl", "-o", "y.jsonl"], "VX7001", "-o: is not an option"),
        (["merge", "x.jsonl", "-o", "y.jsonl", "--db", "z.db"], "VX7001", "contradicts -o"),
        (["check", "bad.jsonl", "--db", "z.db"], "VX7001", "contradicts the files"),
        (["pull", f"bad.jsonl#sha256={'0' * 64}", "--sha256", "0" * 64], "VX7001", "contradicts the hash"),
        (["push", "x.jsonl", "--json"], "VX7001", "--json: is not an option"),
        (["import", "gone.jsonl"], "VX7002", "cannot be read"),
        (["import", "bad.jsonl"], "VX8003", "1 of 2 lines"),
        (["pull", "bad.jsonl#sha256=00"], "VX8005", "not a SHA-256"),
        (["pull", f"bad.jsonl#sha256={'0' * 64}"], "VX8004", "was required"),
        (["pull", "nothing://x/y"], "VX8005", "nothing://x/y"),
        (["ls", "--db", "gone.db"], "VX7002", "'gone.db' does not exist"),
        (["best", "--layer", "mine"], "VX7001", "--layer"),
        (["ls", "--db", "bad.jsonl"], "VX8001", "not a tuning database"),
        (["explain", "quest", "--shape", "batch=8"], "VX8007", "it lacks 'kv_heads', 'tokens', 'kept'"),
        (["explain", "quest", "--shape", "batch=0,kv_heads=1,tokens=1,kept=1"], "VX8007", "batch is 0"),
        (["explain", "quest", "--shape", "bench"], "VX8007", "help: one shape is needed, e.g. batch=8,kv_heads=8"),
        (["prune", "--keep", "0"], "VX7001", "at least 1"),
    ],
)
def test_mistakes(vortex: Vortex, db: Path, args: list[str], code: str, why: str) -> None:
    Path("bad.jsonl").write_bytes(b"{}\n" + write_lines(RECORDS[:1]))
    found = vortex("db", *args)
    assert found.code == 2
    assert code in found.err and why in found.err
    with Store(db) as store:
        assert len(store) == 7, "a mistake changes nothing"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_with_its_options_alone(vortex: Vortex, verb: str) -> None:
    found = vortex("db", verb, "--help")
    assert found.code == 0
    assert found.out.startswith(f"usage: vortex db {verb}") and "--db PATH" in found.out
    assert ("--keep" in found.out) == (verb == "prune")
    assert ("--shape" in found.out) == (verb == "explain")
    assert f"    {verb} " in vortex("db", "--help").out


def test_export_import_merge(vortex: Vortex, db: Path) -> None:
    assert vortex("db", "export", "-o", "all.jsonl").code == 0
    text = Path("all.jsonl").read_bytes()
    assert text == write_lines(RECORDS) == vortex("db", "export").out.encode()
    lines = vortex("db", "export", "attend").out.splitlines()
    assert len(lines) == 6 and lines == sorted(lines, key=lambda x: json.loads(x)["id"])
    other = record({"warps": 1}, 3.0, at="2026-02-02T00:00:00Z")
    Path("more.jsonl").write_bytes(write_lines([other]))
    assert vortex("db", "merge", "all.jsonl", "more.jsonl", "-o", "union.jsonl").code == 0
    assert read_lines(Path("union.jsonl").read_bytes()).records == merge(RECORDS, [other])
    found = vortex("db", "import", "more.jsonl", "all.jsonl")
    assert "1 record, 1 new" in found.err and "7 records, 0 new" in found.err
    with Store(db) as store:
        assert list(store.records()) == merge(RECORDS, [other])
    Path("bad.jsonl").write_bytes(b"{}\n" + write_lines([record({"warps": 9})]))
    assert "1 record, 1 new" in vortex("db", "merge", "bad.jsonl", "--skip-bad").err


def test_prune_keeps_failures(vortex: Vortex, db: Path) -> None:
    assert "2 records removed, 5 left" in vortex("db", "prune", "--keep", "1").err
    with Store(db) as store:
        assert [dict(r.config) for r in store.records("attend") if r.us is None] == [{"warps": 3}]
        assert {r.us for r in store.records("attend")} == {None, 2.0, 4.0, 9.0}, "one warp is best in a bucket"


def test_check(vortex: Vortex, db: Path) -> None:
    assert vortex("db", "check").code == 0
    Path("bad.jsonl").write_bytes(b"{}\n" + write_lines(RECORDS[:2]) + write_lines(RECORDS[:1]))
    found = vortex("db", "check", "bad.jsonl", str(db))
    assert found.code == 1
    assert "bad.jsonl: line 1:" in found.out and "line 4:" in found.out and "twice" in found.out
    assert "9 records, 2 problems" in found.err


@pytest.mark.parametrize("scheme", ["file", "path", "memory"])
def test_push_and_pull(vortex: Vortex, db: Path, tmp_path: Path, scheme: str) -> None:
    if scheme == "memory":
        pytest.importorskip("fsspec")
    url = {"file": (tmp_path / "a b.jsonl").as_uri(), "path": "sub/x.jsonl", "memory": "memory://y.jsonl"}[scheme]
    pushed = vortex("db", "push", url)
    assert pushed.code == 0, pushed.err
    pinned = pushed.out.strip()
    assert pinned == f"{url}#sha256={sha256(write_lines(RECORDS))}"
    assert vortex("db", "push", url).out == pushed.out, "pushing again changes nothing"
    found = vortex("db", "pull", pinned, "--db", "new.db")
    assert found.code == 0 and "7 records, 7 new" in found.err
    with Store("new.db") as store:
        assert list(store.records()) == merge(RECORDS)


class Quiet(SimpleHTTPRequestHandler):
    """Serves the current folder, sends some addresses elsewhere, breaks off others."""

    def do_GET(self) -> None:
        if self.path == "/moved.jsonl":
            self.send_response(302)
            self.send_header("Location", "/all.jsonl")
            self.end_headers()
        elif self.path == "/short.jsonl":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{}")
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "all.jsonl").write_bytes(write_lines(RECORDS))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize("name", ["all.jsonl", "moved.jsonl"])
def test_pull_from_a_web_server(vortex: Vortex, db: Path, server: str, name: str) -> None:
    pin = sha256(write_lines(RECORDS))
    found = vortex("db", "pull", f"{server}/{name}#sha256={pin}", "--db", "new.db")
    assert found.code == 0 and "7 records, 7 new" in found.err, found.err
    with Store("new.db") as store:
        assert list(store.records()) == merge(RECORDS)


@pytest.mark.parametrize(
    ("verb", "url", "code", "why"),
    [
        ("pull", "{server}/all.jsonl#sha256=" + "0" * 64, "VX8004", "was required"),
        ("pull", "{server}/none.jsonl", "VX8005", "404"),
        ("pull", "{server}/short.jsonl", "VX8005", "broke off 998 bytes"),
        ("pull", "http://127.0.0.1:1/x.jsonl", "VX8005", "refused"),
        ("pull", "http://[::1/x.jsonl", "VX8005", "Invalid IPv6"),
        ("push", "{server}/new.jsonl", "VX8005", "read, not written"),
    ],
)
def test_what_a_web_server_does_not_do(
    vortex: Vortex, db: Path, server: str, verb: str, url: str, code: str, why: str
) -> None:
    found = vortex("db", verb, url.format(server=server))
    assert found.code == 2
    assert code in found.err and why in found.err
    with Store(db) as store:
        assert len(store) == 7


@pytest.mark.parametrize("verb", ["pull", "push"])
def test_a_scheme_names_the_package_it_lacks(
    vortex: Vortex, db: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    found = vortex("db", verb, "s3://somewhere/x.jsonl")
    assert found.code == 2
    assert "VX8005" in found.err and "pip install s3fs" in found.err


def test_explain(vortex: Vortex, db: Path) -> None:
    found = vortex("db", "explain", "quest", "--target", "sm_90")
    assert found.code == 0, found.err
    assert "differs in ir" in found.out
    for part in ("kind", "ir", "dtypes", "arch", "sms", "smem", "template", "mode", "l2", "bucket"):
        assert f"\n  {part}" in found.out
    found = vortex("db", "explain", "quest", "--target", "sm_90", "--json")
    asked = json.loads(found.out)["kernels"]["attend"]
    made = record(
        {"warps": 8, "stages": 3, "tile": 16}, 3.0, ir=asked["query"]["ir"], bucket=bucket_of("attend", 128, 2048, 30)
    )
    mine = replace(made, key=replace(made.key, dtypes=("bf16", "f32")))
    with Store(db) as store:
        store.put([mine])
    found = vortex("db", "explain", "quest", "--target", "sm_90")
    assert f"db:{mine.id[:12]}" in found.out and "1 steps off" in found.out

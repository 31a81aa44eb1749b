"""A disk that is full or cannot be written, standard streams that are closed, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tests.tune.records import record
from vortex import __version__
from vortex.cli.main import USER_ERROR, main
from vortex.errors import VortexError
from vortex.install import toolchain
from vortex.install.scratch import scratch_folder
from vortex.install.whole_files import replace_file
from vortex.tune.store import Store

ROOT = Path(__file__).resolve().parents[2]
VORTEX = f"{sys.executable} -m vortex"
SMALL = ("--head-dim", "64", "--no-db")


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    words = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(words, capture_output=True, text=True, env=env, cwd=folder, check=False, timeout=300)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "command",
    [
        "compile quest {small} --no-dump -o {disk}/q.vxa",
        "compile quest {small} --to page --dump-dir {disk}/dumps",
        "compile quest {small} --no-dump --to tir -o {disk}/q.tir",
        "opt {dump}/00-trace.flow -o {disk}/q.flow",
    ],
)
def test_a_full_disk(command: str, full: Path, compiled: Path, tmp_path: Path) -> None:
    (full / "ballast").write_bytes(bytes(64 << 10 if "opt" in command else 48 << 10))
    given = command.format(disk=full, small=" ".join(SMALL), dump=compiled / "dump")
    found = shell(f"{VORTEX} {given}", tmp_path)
    assert found.returncode == 2, found.stderr
    assert f"error[VX7004]: '{full}" in found.stderr
    assert "No space left on device" in found.stderr
    left = content(full)
    assert not [name for name in left if ".part" in name or ".tmp" in name or "q." in name]
    assert all(data for data in left.values())


def test_a_full_folder_for_temporary_files(full: Path, tmp_path: Path) -> None:
    (full / "ballast").write_bytes(bytes(64 << 10))
    found = shell(f"{VORTEX} compile quest {' '.join(SMALL)} --no-dump -o {tmp_path}/q.vxa", tmp_path, TMPDIR=str(full))
    assert found.returncode == 0 or (found.returncode == 2 and "error[VX" in found.stderr), found.stderr
    assert list(content(full)) == ["ballast"]


def test_a_full_standard_output(tmp_path: Path) -> None:
    # Python holds text back until it is 8 KiB; without that the first write fails, inside argparse
    for arguments, at_once in (("ops", ""), ("--help", ""), ("errors", ""), ("db ls --help", ""), ("ops --help", "1")):
        found = shell(f"{VORTEX} {arguments} > /dev/full", tmp_path, PYTHONUNBUFFERED=at_once)
        assert (found.returncode, "VX7004" in found.stderr) == (2, True), found.stderr
        assert "Traceback" not in found.stderr
        assert "Exception ignored" not in found.stderr


def test_a_scratch_folder_on_a_full_disk(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, whatever writes into it; other errors inside stay what they are."""
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    with pytest.raises(VortexError) as caught, scratch_folder("vortex-demo-") as folder:
        (folder / "big").write_bytes(bytes(128 << 10))
    assert caught.value.code == "VX7004"
    assert f"'{full}/vortex-demo-" in caught.value.message
    with pytest.raises(FileNotFoundError), scratch_folder() as folder:
        (folder / "nothing").read_bytes()
    assert not content(full)
    assert not list(full.iterdir())


def test_the_stamp_of_a_toolchain_on_a_full_disk(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was installed is not said to be there."""
    where = full / "toolchain"

    def run(step: str, words: list[str]) -> str:
        where.mkdir(exist_ok=True)
        try:
            (where / "ballast").write_bytes(bytes(128 << 10))
        except OSError:
            return __version__
        raise AssertionError("the disk has room")

    monkeypatch.setattr(toolchain, "_run", run)
    with pytest.raises(VortexError) as caught:
        toolchain.Installation(where, sys.executable, "vortex").run(lambda _: None)
    assert caught.value.code == "VX7004"
    assert f"{where}/{toolchain.STAMP}" in caught.value.message
    assert not where.exists()


@pytest.mark.parametrize("arguments", ["ops", "--help", "ops --help", "info {}/quest.vxa", "--version"])
def test_nobody_reads_standard_output(arguments: str, compiled: Path, tmp_path: Path) -> None:
    given = arguments.format(compiled)
    for command in (f"{VORTEX} {given} | head -n 0", f"{VORTEX} {given} >&-", f"{VORTEX} {given} <&- >&- 2>&-"):
        found = shell(command, tmp_path)
        assert (found.returncode, found.stderr) == (0, ""), command


def test_nobody_reads_the_message(tmp_path: Path) -> None:
    for command in (
        f"{VORTEX} nothing 2>&-",
        f"{VORTEX} nothing 2>&1 >&- | head -n 0",
        f"{VORTEX} nothing 2>/dev/full",
    ):
        assert shell(command, tmp_path).returncode == 2, command


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    """A file is where its folder should be."""
    (tmp_path / "cache").write_text("a file")
    where = str(tmp_path / "cache")
    found = shell(f"{VORTEX} compile quest --head-dim 64 -o q.vxa", tmp_path, XDG_CACHE_HOME=where)
    assert found.returncode == 0, found.stderr
    found = shell(f"{VORTEX} db ls", tmp_path, XDG_CACHE_HOME=where)
    assert found.returncode in (0, 2)
    assert "internal" not in found.stderr


def hear_interrupts() -> None:
    """The background jobs of a shell ignore the signal, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("after", [0.3, 1.0, 2.0, 3.0, 4.5, 6.0])
def test_interrupted(after: float, compiled: Path, tmp_path: Path) -> None:
    """One line and 130, wherever it comes; the artifact of before is there, and nothing else."""
    scratch, out = tmp_path / "tmp", tmp_path / "out"
    scratch.mkdir()
    subprocess.run(["cp", "-r", str(compiled), str(out)], check=True)
    before = content(out)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
    words = [sys.executable, "-m", "vortex", "compile", "quest", *SMALL, "--no-dump", "-o", str(out / "quest.vxa")]
    running = subprocess.Popen(
        words,
        env=env,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    time.sleep(after)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=120)
    if running.returncode == 0 or said.startswith("wrote"):
        pytest.skip("it was done before")
    assert (running.returncode, said) == (130, "interrupted\n")
    assert content(out) == before
    assert not [p for p in scratch.iterdir() if re.match(r"vortex|\.link|tmp", p.name)]
    assert not [p for p in tmp_path.rglob("vortex-crash*")]


def test_interrupted_when_it_is_done(tmp_path: Path) -> None:
    """The exit code is what the work came to, however late the interrupt."""
    code = "import os, signal, sys; from vortex.cli.main import entry; sys.argv = ['vortex', 'kinds']; code = entry(); "
    code += "os.kill(os.getpid(), signal.SIGINT); sys.exit(code)"
    found = shell(f'{sys.executable} -c "{code}"', tmp_path)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("code", ["{}", "exec({!r})"], ids=["plain", "exec"])
@pytest.mark.parametrize("module", ["vortex.cli.main", "vortex.cli.kinds"])
def test_interrupted_while_the_command_line_is_loaded(tmp_path: Path, module: str, code: str) -> None:
    """One line and 130, before there is anything that could handle it; also inside of a string that is executed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        f"            {code.format('os.kill(os.getpid(), signal.SIGINT)')}\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    found = shell(f"{VORTEX} kinds", tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "command",
    [
        "eval quest -o",
        "advise prompts.txt -o",
        "capture -o",
        "tune quest --shapes tiny -o",
        "reduce quest --test true -o",
        "run quest.vxa --trace",
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for out, why in ((".", "Is a directory"), ("no/such/file", "No such file or directory")):
        assert main([*command.split(), out]) == USER_ERROR
        assert capsys.readouterr().err.startswith(f"error[VX7004]: '{out}' cannot be written: {why}\n")


@pytest.mark.parametrize("words", ["db export -o", "db merge records.jsonl -o", "compile quest --to flow -o"])
def test_a_pipe_or_device_is_written_to_and_stays(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VORTEX_DB", str(tmp_path / "tune.db"))
    with Store(tmp_path / "tune.db") as store:
        store.put([record({"warps": 2}, 5.0)])
    assert main(["db", "export", "-o", "records.jsonl"]) == 0
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        main([*words.split(), "pipe", *(["--no-dump"] if "compile" in words else [])])
        assert stat.S_ISFIFO(os.stat("pipe").st_mode)
        assert os.read(reader, 1 << 16)
    finally:
        os.close(reader)


def test_two_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: replace_file(out, b"%d" % n * 100_000), range(64)))
    assert len(set(out.read_bytes())) <= 2
    assert list(tmp_path.iterdir()) == [out]

"""Artifacts: what is written is read again, and nothing else is."""

from __future__ import annotations

import errno
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vortex.artifact.folder import (
    ConstantEntry,
    FieldEntry,
    KernelEntry,
    Manifest,
    TargetEntry,
    read_manifest,
    require_digest,
    verify_files,
    write_artifact,
)
from vortex.artifact.manifest import VERSION
from vortex.errors import VortexError
from vortex.spec import Spec

FILES = {"lib.cpu.so": b"\x7fELF not really", "constants/w.bin": b"\0" * 16, "ir/0-trace.flow": b"flow\n"}


def manifest() -> Manifest:
    kernels = (
        KernelEntry("plan", "plan", "plan", ("lengths", "budget", "plan")),
        KernelEntry("select", "select", "select0", ("q", "field.lo", "const.w", "workspace"), 2, 8, {"split": 4}, "ab"),
    )
    return Manifest(
        flow="quest",
        source="0" * 64,
        spec=Spec(group=4),
        fields=(FieldEntry("lo", (128,), "bf16"), FieldEntry("hi", (128,), "fp8_e4m3")),
        constants=(ConstantEntry("w", "constants/w.bin", "f32", (2, 2)),),
        targets={"cpu": TargetEntry("lib.cpu.so", kernels, "x86-64-v3", "x86_64", ("avx2",))},
        toolchain={"tvm": "0.27.0.post1"},
        provenance={"command": ["vortex", "compile"], "seconds": 1.5},
    )


def code(call, *args) -> str:
    with pytest.raises(VortexError) as caught:
        call(*args)
    caught.value.render().encode()
    return caught.value.code


def outcome(path: Path) -> Manifest | VortexError:
    try:
        return read_manifest(path)
    except VortexError as error:
        return error


def harmless(error: VortexError) -> bool:
    return error.code in ("VX5001", "VX5002") and "\x1b" not in error.render() and bool(error.render().encode())


def test_round_trip(tmp_path: Path) -> None:
    written = write_artifact(tmp_path / "a.vxa", manifest(), FILES)
    got = read_manifest(tmp_path / "a.vxa")
    assert got == written
    assert replace(got, files={}) == manifest()
    verify_files(tmp_path / "a.vxa", got)
    require_digest(tmp_path / "a.vxa", got, got.digest.upper())
    assert code(require_digest, tmp_path / "a.vxa", got, "0" * 64) == "VX5005"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.vxa"]


def test_reproducible_and_digest_covers_everything_but_provenance(tmp_path: Path) -> None:
    a = write_artifact(tmp_path / "a", manifest(), FILES)
    b = write_artifact(tmp_path / "b", replace(manifest(), provenance={"command": "other"}), FILES)
    assert a.digest == b.digest
    others = [
        write_artifact(tmp_path / "c", manifest(), {**FILES, "ir/0-trace.flow": b"flop\n"}),
        write_artifact(tmp_path / "d", replace(manifest(), flow="other"), FILES),
        write_artifact(tmp_path / "e", replace(manifest(), toolchain={}), FILES),
    ]
    assert len({a.digest, *(m.digest for m in others)}) == 4


def test_replaces_an_artifact_and_nothing_else(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", manifest(), {**FILES, "old": b"x"})
    write_artifact(tmp_path / "a", manifest(), FILES)
    assert not (tmp_path / "a" / "old").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("home", "file", "link"):
        assert code(write_artifact, tmp_path / name, manifest(), FILES) == "VX5001"
    assert (tmp_path / "home" / "letter").read_text() == "dear"
    assert {p.name for p in tmp_path.iterdir()} == {"a", "home", "file", "link"}


@pytest.mark.parametrize(
    ("bad", "files"),
    [
        (manifest(), {}),
        (manifest(), {**FILES, "../x": b""}),
        (manifest(), {**FILES, "constants/w.bin": b""}),
        (manifest(), {**FILES, "manifest.json": b""}),
        (replace(manifest(), flow="two words"), FILES),
        (replace(manifest(), provenance={"x": float("nan")}), FILES),
    ],
)
def test_a_bad_artifact_is_not_written(tmp_path: Path, bad: Manifest, files: dict[str, bytes]) -> None:
    good = write_artifact(tmp_path / "a", manifest(), FILES)
    assert code(write_artifact, tmp_path / "a", bad, files) in ("VX5001", "VX5002")
    assert read_manifest(tmp_path / "a") == good
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_failure_leaves_the_old_one(tmp_path: Path) -> None:
    good = write_artifact(tmp_path / "a", manifest(), FILES)
    assert code(write_artifact, tmp_path / "a", manifest(), {**FILES, "x": tmp_path / "missing"}) == "VX7004"
    assert read_manifest(tmp_path / "a") == good
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "stopped_by", [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("call", ["mkdir", "write_bytes", "write_text", "rename"])
def test_wherever_writing_stops_the_old_one_is_there(
    tmp_path: Path, call: str, stopped_by: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first call, the second and so on, each of which leaves half of what it should make."""
    good = write_artifact(tmp_path / "a", manifest(), FILES)
    real = getattr(Path, call)
    seen: list[str] = []
    left = -1

    def stopping(path: Path, *given: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left == -1:
            if call.startswith("write"):
                real(path, given[0][:1], **more)
            raise stopped_by
        return real(path, *given, **more)

    with monkeypatch.context() as m:
        m.setattr(Path, call, stopping)
        for n in range(20):
            left = n
            try:
                write_artifact(tmp_path / "a", manifest(), FILES)
                break
            except (VortexError, KeyboardInterrupt) as error:
                seen.append(error.code if isinstance(error, VortexError) else "interrupted")
            assert read_manifest(tmp_path / "a") == good
            assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert set(seen) == {"VX7004" if isinstance(stopped_by, OSError) else "interrupted"}
    assert len(seen) < 20


def test_foreign(tmp_path: Path) -> None:
    assert code(read_manifest, tmp_path / "none") == "VX5001"
    assert code(read_manifest, tmp_path) == "VX5001"
    file = tmp_path / "manifest.json"
    assert code(read_manifest, file) == "VX5001"
    for text in (b"", b"{", b"[]", b"{}", b'"x"', b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b"null", b"\0" * 99):
        file.write_bytes(text)
        assert code(read_manifest, tmp_path) == "VX5001"
    for version in (1, VERSION + 1, str(VERSION), None, True, 1.5, [1], 10**5000):
        text = json.dumps({"format": "vortex-artifact", "version": 0})
        digits = "1" + "0" * 5000 if version == 10**5000 else json.dumps(version)
        file.write_text(text.replace(": 0", f": {digits}"))
        assert code(read_manifest, tmp_path) == "VX5001"
    file.unlink()
    file.mkdir()
    assert code(read_manifest, tmp_path) == "VX5001"


def test_changed_files(tmp_path: Path) -> None:
    made = write_artifact(tmp_path / "a", manifest(), FILES)
    for change in ("bytes", "size", "gone", "link", "folder"):
        broken = tmp_path / change
        shutil.copytree(tmp_path / "a", broken)
        lib = broken / "lib.cpu.so"
        if change == "bytes":
            lib.write_bytes(FILES["lib.cpu.so"].replace(b"not", b"yes"))
        elif change == "size":
            lib.write_bytes(b"")
        else:
            lib.unlink()
        if change == "link":
            lib.symlink_to(tmp_path / "a" / "lib.cpu.so")
        if change == "folder":
            lib.mkdir()
        assert code(verify_files, broken, made) == "VX5002"
    outside = tmp_path / "through"
    shutil.copytree(tmp_path / "a", outside)
    shutil.rmtree(outside / "constants")
    (outside / "constants").symlink_to(tmp_path / "a" / "constants")
    assert code(verify_files, outside, made) == "VX5002"


HOSTILE: list[object] = [
    None, True, -1, 0, 1.5, 2**31, 10**40, float("inf"), "", "..", "../x", "/etc/passwd", "a/../../b", "a//b", "C:x",
    "a\\b", "\x1b[2J", "\ud800", "x" * 10_000, "two words", [], {}, [[]], {"": 1}, [None], {"a": {"b": []}},
]  # fmt: skip


def mutations(value: object, rng: random.Random) -> object:
    """``value`` with one place in it replaced, dropped, doubled or renamed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        copy = value.copy()
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        action = rng.random()
        if action < 0.15:
            del copy[key]  # type: ignore[arg-type]
        elif action < 0.25 and isinstance(copy, dict):
            copy[str(rng.choice(HOSTILE))] = copy.pop(key)
        elif action < 0.3 and isinstance(copy, list):
            copy.insert(0, rng.choice(HOSTILE))
        else:
            copy[key] = mutations(copy[key], rng)  # type: ignore[index]
        return copy
    return rng.choice(HOSTILE)


def test_mutated_manifests(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", manifest(), FILES)
    file = tmp_path / "a" / "manifest.json"
    whole = json.loads(file.read_text())
    rng = random.Random(0)
    for _ in range(3000):
        file.write_text(json.dumps(mutations(whole, rng)))
        got = outcome(tmp_path / "a")
        assert harmless(got) if isinstance(got, VortexError) else got.digest == whole["digest"]


def test_mutated_manifests_with_a_fitting_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The types are checked, not only the digest: what passes is harmless."""
    write_artifact(tmp_path / "a", manifest(), FILES)
    file = tmp_path / "a" / "manifest.json"
    whole = json.loads(file.read_text())
    monkeypatch.setattr(Manifest, "digest", whole["digest"])
    rng = random.Random(1)
    passed = 0
    for _ in range(3000):
        file.write_text(json.dumps(mutations(whole, rng)))
        got = outcome(tmp_path / "a")
        if isinstance(got, VortexError):
            assert harmless(got)
            continue
        passed += 1
        for name in (*got.files, got.targets.get("cpu", TargetEntry("x", ())).library):
            assert (tmp_path / "a" / name).resolve().is_relative_to((tmp_path / "a").resolve())
        assert all(isinstance(w, int) for t in got.targets.values() for k in t.kernels for w in (k.page_words,))
    assert passed > 0


def test_every_truncation_and_flipped_bytes(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", manifest(), FILES)
    file = tmp_path / "a" / "manifest.json"
    whole = file.read_bytes()
    for n in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:n])
        assert code(read_manifest, tmp_path / "a") == "VX5001"
    rng = random.Random(2)
    for _ in range(1000):
        text = bytearray(whole)
        text[rng.randrange(len(text))] = rng.randrange(256)
        file.write_bytes(bytes(text))
        got = outcome(tmp_path / "a")
        assert not isinstance(got, VortexError) or harmless(got)

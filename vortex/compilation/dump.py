"""One folder with everything a compilation passed through, as text that diffs well.

``00-trace.flow``, ``04-reassociate.flow``, ``10-outline.page``, ``attend.cpu.tir``, ``cpu.ll``: passes are numbered in
order, and one that changed nothing has an entry in ``manifest.json`` and no file. ``repro.sh`` repeats each step.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vortex.errors import BAD_OPTION, NO_SUCH_FILE, VortexError, writing

MANIFEST = "manifest.json"
VERSION = 1
SHOWN = 3
"""How many files an error names."""


def text_hash(text: str) -> str:
    """A short hash of a dumped text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


@dataclass
class DumpDir:
    """A dump folder being written; :meth:`open` makes one."""

    path: Path
    about: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Hash of each file written, by name: what a later compilation may replace."""

    @classmethod
    def open(cls, path: Path, **about: object) -> DumpDir:
        """A fresh folder at ``path``; the files of an earlier dump there are removed.

        Raises:
            VortexError: VX7001 when the folder holds files that no dump wrote or that were edited since.
        """
        if path.exists():
            if found := foreign_files(path):
                names = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
                why = f"'{path}' holds what no dump wrote or what was edited since: {names}"
                raise BAD_OPTION.at(option="--dump-dir", why=why, hint="name a new folder, or move those files away")
            with writing(path):
                for file in path.iterdir():
                    file.unlink()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BAD_OPTION.at(
                option="--dump-dir", why=f"'{path}': {e.strerror}", hint="name another folder"
            ) from None
        made = cls(path, {"dump": VERSION, **about})
        made.close("running")
        return made

    def step(
        self,
        name: str,
        stage: str,
        text: str,
        *,
        before: str = "",
        target: str = "",
        seconds: float = 0.0,
        looked_up: bool = False,
    ) -> Path | None:
        """Record one step of the way; its file, or None where ``text`` is what it was ``before``. No command
        repeats one in which schedules were ``looked_up`` in tuning databases.
        """
        number = len(self.steps)
        entry: dict[str, Any] = {
            "step": number,
            "name": name,
            "stage": stage,
            "target": target,
            "changed": text != before,
        }
        entry |= {"file": None, "hash": text_hash(text), "seconds": round(seconds, 6)}
        self.steps.append(entry)
        if text == before:
            return None
        short = name.partition("{")[0]
        entry["file"] = f"{number:02}-{short}{f'.{target}' if target else ''}.{stage}"
        source = self.holding(before) if before else None
        if source and looked_up:
            self.commands.append(
                f"# {entry['file']} has schedules of tuning databases, which 'vortex opt' does not ask"
            )
        elif source:
            entry["command"] = f"vortex opt {source} --passes={shlex.quote(name)}"
            entry["command"] += f" --target {target}" if target else ""
            self.commands.append(f"{entry['command']} | diff - {entry['file']}")
        return self.write(entry["file"], text)

    def write(self, name: str, text: str) -> Path:
        """One more file."""
        file = self.path / name
        with writing(file):
            _replace(file, text)
        self.files[name] = text_hash(text)
        return file

    def close(self, status: str, **about: object) -> None:
        """Write ``manifest.json`` and ``repro.sh`` as far as things have come."""
        self.about |= {"status": status, **about}
        script = [
            "#!/bin/sh",
            f"# Made by: {shlex.join(self.about.get('argv', []))}",
            "# Each line repeats one step and compares with what was dumped.",
            'cd "$(dirname "$0")" || exit',
            """command -v vortex > /dev/null || vortex() { "${PYTHON:-python3}" -m vortex "$@"; }""",
        ]
        self.write("repro.sh", "\n".join([*script, *self.commands, ""]))
        manifest = {**self.about, "steps": self.steps, "files": self.files}
        with writing(self.path / MANIFEST):
            _replace(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n")

    def holding(self, text: str) -> str | None:
        """The last file with that text."""
        digest = text_hash(text)
        return next((name for name, has in reversed(self.files.items()) if has == digest), None)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dump folder.

    Raises:
        VortexError: VX7002 when ``folder`` is not a dump.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NO_SUCH_FILE.at(path=str(folder / MANIFEST), why="does not exist: the folder is not a dump") from None
    except (OSError, ValueError) as e:
        raise NO_SUCH_FILE.at(path=str(folder / MANIFEST), why=f"cannot be read: {e}") from None
    if not isinstance(found, dict) or found.get("dump") != VERSION or not isinstance(found.get("files"), dict):
        raise NO_SUCH_FILE.at(path=str(folder / MANIFEST), why=f"is not a manifest of a dump of version {VERSION}")
    return found


def foreign_files(path: Path) -> list[str]:
    """What is at ``path`` beside an untouched dump: files that no dump wrote or that were edited since."""
    if not path.is_dir():
        return [path.name]
    there = {f.name: f for f in path.iterdir() if f.name != MANIFEST}
    try:
        known: dict[str, str] = read_manifest(path)["files"]
    except VortexError:
        return sorted(f.name for f in path.iterdir())
    return sorted(n for n, f in there.items() if n not in known or text_hash(_text(f)) != known[n])


def free_folder(path: Path) -> Path:
    """``path``, or ``path-2`` and so on, whichever is first to hold nothing but a dump."""
    number, found = 1, path
    while found.exists() and foreign_files(found):
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _replace(file: Path, text: str) -> None:
    """Write ``file`` whole or, where the disk refuses, not at all: what was there stays."""
    scratch = file.with_name(f".{file.name}.part")
    try:
        scratch.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be any bytes
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        return ""

"""What decides a build, as a value with named parts: the one key of every cache of things that were built.

Two builds whose parts are equal give the same result, so that the second may take what the first one left; where they
differ, the names say why it was built again. A cache stores the identity beside what it keeps (:meth:`Identity.write`),
and ``vortex explain-cache`` compares.

| part | is |
|---|---|
| ``ir``, ``constants``, ``source`` | the traced flow: what it computes, which tensors it captured, its class's text |
| ``spec``, ``target``, ``passes``, ``knobs`` | what was asked for |
| ``code.<package>``, ``c_sources`` | the compiler itself: every package that takes part, and the C files it compiles |
| ``records.<layer>`` | the tuning databases that are consulted |
| ``tools`` | versions of TVM, nvcc and the others |

An import, a module's global or a loaded file of a flow changes what is traced, and so the first three.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from vortex.install import databases

UNUSED = ("runtime", "check")
"""Packages that run what was built and take no part in building it."""

TOOLS = ("apache_tvm", "apache_tvm_ffi", "numpy", "torch", "nvidia_cuda_nvcc")
"""Distributions whose versions count, as their ``.dist-info`` folders are named (``-`` and ``_`` are the same)."""

DIGITS = 16
"""Of a digest that stands for a part."""


@dataclass(frozen=True)
class Identity:
    """Named parts, each a short text or a digest."""

    parts: Mapping[str, str]

    @cached_property
    def key(self) -> str:
        """SHA-256 in hex over names and parts."""
        return hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()

    @property
    def short(self) -> str:
        """The beginning of the key, as in file names."""
        return self.key[:DIGITS]

    def differences(self, other: Identity) -> dict[str, tuple[str, str]]:
        """Each part that differs: its name -> what it is here and there, ``-`` where it is absent."""
        names = sorted({*self.parts, *other.parts})
        both = {name: (self.parts.get(name, "-"), other.parts.get(name, "-")) for name in names}
        return {name: (here, there) for name, (here, there) in both.items() if here != there}

    def nearest(self, others: Iterable[Identity]) -> Identity | None:
        """The one that differs in the fewest parts, the first of several."""
        return min(others, key=lambda other: len(self.differences(other)), default=None)

    def write(self, path: Path) -> None:
        """Keep it beside what was built."""
        path.write_text(json.dumps(dict(self.parts), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Identity | None:
        """What :meth:`write` wrote; None where there is no such file or it is damaged."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
            return None
        return cls(found)


def digest(*content: str | bytes) -> str:
    """A digest that stands for texts or bytes as a part."""
    found = hashlib.sha256()
    for x in content:
        data = x.encode() if isinstance(x, str) else x
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:DIGITS]


def code(root: Path | None = None) -> dict[str, str]:
    """The parts ``code.<package>`` and ``c_sources`` of the vortex in the folder ``root``, by default this one."""
    root = root or Path(__file__).parents[1]
    groups: dict[str, list[str | bytes]] = {}
    for file in sorted(root.rglob("*")):
        inside = file.relative_to(root)
        if file.suffix not in (".py", ".c", ".h") or inside.parts[0] in UNUSED:
            continue
        package = inside.parts[0].removesuffix(".py")
        name = f"code.{package}" if file.suffix == ".py" else "c_sources"
        groups.setdefault(name, []).extend((inside.as_posix(), file.read_bytes()))
    return {name: digest(*content) for name, content in groups.items()}


def records() -> dict[str, str]:
    """The parts ``records.<layer>``: the content of each database that a compilation consults, used by it or not."""
    if databases.switched_off():
        return {}
    found = {"records.user": _database(databases.user_path())}
    for layer, files in (("project", databases.project_files()), ("shipped", databases.shipped_files())):
        found[f"records.{layer}"] = digest(*(_bytes(file) for file in files)) if files else ""
    return {name: value for name, value in found.items() if value}


def _database(path: Path) -> str:
    """A digest of the rows of an SQLite file; empty for none. The file's bytes would change with its journal."""
    if not path.exists():
        return ""
    found = hashlib.sha256()
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall():
                for row in db.execute(f'SELECT * FROM "{table}"'):
                    found.update(repr(row).encode())
        finally:
            db.close()
    except sqlite3.Error as e:
        return f"unreadable: {e}"
    return found.hexdigest()[:DIGITS]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as e:
        return f"unreadable: {e.strerror}".encode()


def tools(python: Path | None = None) -> str:
    """Versions of what compiles: of the environment of the interpreter ``python``, by default this one."""
    found = {"python": str(python or platform.python_version()), **dict(_distributions(python))}
    nvcc = shutil.which("nvcc")
    if home := os.environ.get("CUDA_HOME") or (nvcc and Path(nvcc).resolve().parents[1]):
        found["cuda"] = f"{home} {digest(_bytes(Path(home) / 'version.json'))}"
    if compiler := os.environ.get("CC") or shutil.which("cc"):
        # a compiler's version is part of the name that a distribution links cc to
        found["cc"] = os.path.realpath(compiler) if os.path.isabs(compiler) else compiler
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))


def _distributions(python: Path | None) -> Iterator[tuple[str, str]]:
    """Of another interpreter they are read off its folders, for starting it takes long."""
    if python is None:
        for name in TOOLS:
            try:
                yield name, metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return
    for packages in _site_packages(python):
        for folder in sorted(packages.glob("*.dist-info")):
            name, _, version = folder.name.removesuffix(".dist-info").partition("-")
            if name.lower() in TOOLS:
                yield name.lower(), version


def _site_packages(python: Path) -> list[Path]:
    return sorted(python.parent.parent.glob("lib/python*/site-packages"))


def compiler_code(python: Path) -> dict[str, str]:
    """As :func:`code`, of the vortex that is installed for another interpreter; of this one where it has no copy."""
    copies = [p / "vortex" for p in _site_packages(python) if (p / "vortex" / "driver.py").exists()]
    return code(copies[0] if copies else None)


def traced(text: str, constants: Mapping[str, str], source: str) -> dict[str, str]:
    """The parts of a traced flow: ``text`` of its IR without locations, the ``constants`` in it as base64 by name, and
    the ``source`` hash in it. Neither of the two enters ``ir``, so that each change has a name of its own.
    """
    for inside in (*constants.values(), source):
        text = text.replace(inside, "") if inside else text
    data = [x for name in sorted(constants) for x in (name, constants[name])]
    return {"ir": digest(text), "constants": digest(*data), "source": source[:DIGITS]}


def of_build(
    flow: Mapping[str, str],
    *,
    spec: str,
    target: str,
    passes: str = "default",
    knobs: str = "",
    python: Path | None = None,
    consults: bool = True,
) -> Identity:
    """The identity of what the compiler makes of a flow.

    ``flow`` has the parts that name it (:func:`traced`); ``target`` says the processor as well, where it counts.
    ``python`` is the interpreter that compiles, where it is not this one; ``consults``: databases are asked.
    """
    asked = {"spec": spec, "target": target, "passes": passes, "knobs": knobs, "tools": tools(python)}
    compiler = compiler_code(python) if python else code()
    return Identity({**flow, **asked, **compiler, **(records() if consults else {})})

"""Flow files, read and run as ``python FILE`` does, but under a name of their own: ``__main__`` guards stay shut."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import linecache
import os
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vortex.errors import FLOW_RAISED, NO_SUCH_FILE, OTHER_PACKAGE, Loc, VortexError
from vortex.flow import source

_LOCK = threading.RLock()
READ_AS_OURS = {"vortex_torch": "vortex.compat.vortex_torch.names"}
"""Packages that flow files may be written for, and what stands in for them, installed or not."""


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages of :data:`READ_AS_OURS` for the code of a flow file."""

    def __init__(self) -> None:
        self._made: dict[str, types.ModuleType] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package not in READ_AS_OURS:
            return None
        if package not in self._made:
            self._made |= importlib.import_module(READ_AS_OURS[package]).modules()
        if fullname not in self._made:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self._made[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        """It is filled already."""


class FlowFile:
    """A file of flows as a module, and the modules beside it that it imports.

    Two files are two modules whatever their names are, and each has the siblings of its own folder: what it imported
    from there is in ``sys.modules`` only while its code runs.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.whole = os.path.abspath(path)
        self.folder = os.path.dirname(self.whole)
        stem = Path(path).stem
        tag = hashlib.sha256(self.whole.encode(errors="surrogateescape")).hexdigest()[:12]
        self.package, self.root = _package(self.folder)
        self.name = ".".join(filter(None, (self.package, f"_vortex_flow_{tag}_{stem}")))
        self.module = types.ModuleType(self.name)
        self.module.__file__ = self.whole
        self.module.__package__ = self.package
        self._siblings: dict[str, types.ModuleType] = {}
        self._depth = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """``sys.path`` and ``sys.modules`` as a program in this folder has them."""
        with _LOCK:
            if self._depth:
                yield
                return
            self._depth += 1
            beside = {entry.split(".")[0] for folder in {self.folder, self.root} for entry in os.listdir(folder)}
            hidden = {n: m for n, m in list(sys.modules.items()) if n.split(".")[0] in beside and self._foreign(m)}
            hidden |= {n: m for n, m in list(sys.modules.items()) if n.split(".")[0] in READ_AS_OURS}
            for name in hidden:
                del sys.modules[name]
            before, stand_ins = set(sys.modules), _StandIns()
            sys.meta_path.insert(0, stand_ins)
            sys.modules.update(self._siblings)
            path, writes = list(sys.path), sys.dont_write_bytecode
            sys.path[:0] = [self.folder] if self.root == self.folder else [self.folder, self.root]
            sys.dont_write_bytecode = True  # an edit within the same second would find the old bytecode
            importlib.invalidate_caches()
            try:
                yield
            finally:
                self._depth -= 1
                sys.meta_path.remove(stand_ins)
                for name in [n for n in sys.modules if n.split(".")[0] in READ_AS_OURS and n != self.name]:
                    del sys.modules[name]
                sys.path[:], sys.dont_write_bytecode = path, writes
                for name in set(sys.modules) - before:
                    if name != self.name and self._ours(sys.modules[name]):
                        self._siblings[name] = sys.modules.pop(name)
                sys.modules.update(hidden)

    def _ours(self, module: Any) -> bool:
        places = [getattr(module, "__file__", None), *list(getattr(module, "__path__", None) or ())[:1]]
        roots = (self.folder + os.sep, self.root + os.sep)
        return any(isinstance(p, str) and os.path.abspath(p).startswith(roots) for p in places) and not _installed(
            places
        )

    def _foreign(self, module: Any) -> bool:
        """Whether a loaded module has the name of one in this folder and is another: a program's own, not installed."""
        file = getattr(module, "__file__", None)
        return isinstance(file, str) and not self._ours(module) and not _installed([file])

    def run(self) -> None:
        """Execute the file; what it raises is an error at its line."""
        try:
            text = Path(self.path).read_bytes()
        except (OSError, ValueError) as e:
            raise NO_SUCH_FILE.at(path=self.path, why=_why_unread(e)) from None
        self.module.__package__ = self.package or _copied_from(text)
        linecache.checkcache(self.path)
        argv = sys.argv
        with self.entered():
            sys.modules[self.name], sys.argv = self.module, [self.path]
            try:
                if self.package:
                    importlib.import_module(self.package)
                exec(compile(text, self.path, "exec", dont_inherit=True), self.module.__dict__)
            except VortexError:
                raise
            except SyntaxError as e:
                loc = Loc(e.filename or self.path, e.lineno or 1, e.offset or 1)
                raise FLOW_RAISED.at(loc, type=type(e).__name__, text=e.msg, hint="the file must be Python") from None
            except (Exception, SystemExit) as e:
                loc2 = source.innermost(e.__traceback__) or Loc(self.path, 1)
                if isinstance(e, ImportError) and (e.name or "").split(".")[0] in READ_AS_OURS:
                    raise OTHER_PACKAGE.at(loc2, text=str(e).replace(" (unknown location)", "")) from e
                hint = "raised while the file was loaded"
                if isinstance(e, SystemExit):
                    hint += "; what a program does belongs under if __name__ == '__main__':"
                raise FLOW_RAISED.at(loc2, type=type(e).__name__, text=str(e) or "no message", hint=hint) from e
            finally:
                sys.argv = argv


def _why_unread(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is not a path"


def _is_text(path: str) -> bool:
    """Whether a path can be written in UTF-8: bytes that are none stand in it as lone surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _package(folder: str) -> tuple[str, str]:
    """The package that a folder is, dotted, and the folder from which it is imported."""
    parts: list[str] = []
    while os.path.isfile(os.path.join(folder, "__init__.py")) and os.path.basename(folder).isidentifier():
        parts.insert(0, os.path.basename(folder))
        folder = os.path.dirname(folder)
    return ".".join(parts), folder


def _copied_from(text: bytes) -> str:
    """The package of a file that lies in none and was copied out of one of :data:`READ_AS_OURS`, by its imports.

    ``from .flow import vFlow`` and ``from ..indexer import topK`` can only stand in ``vortex_torch/flow/``.
    """
    try:
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
    except (SyntaxError, ValueError):
        return ""
    own = any(n.level == 1 and n.module in ("flow", "flow_mla") for n in nodes)
    return "vortex_torch.flow" if own else ""


_PREFIXES = tuple({os.path.abspath(p) + os.sep for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)})
_VORTEX = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _installed(places: list[Any]) -> bool:
    """Part of Python's installation, or of this package."""
    return any(isinstance(p, str) and os.path.abspath(p).startswith((*_PREFIXES, _VORTEX)) for p in places)


_FILES: dict[str, FlowFile] = {}
"""Loaded files by the name of their module."""


def loading(path: str) -> FlowFile | None:
    """The file, where it is being run at the moment: it asks for its own flows."""
    file = loaded(path)
    return file if file is not None and file._depth and file.name in sys.modules else None


def loaded(path: str) -> FlowFile | None:
    """The file as it last ran."""
    whole = os.path.abspath(path)
    return next((f for f in _FILES.values() if f.whole == whole), None)


def load(path: str) -> FlowFile:
    """Run a file anew, siblings included.

    Raises:
        VortexError: VX7002 when it cannot be read, or what the file itself raises.
    """
    made = FlowFile(path)
    if not os.path.isdir(made.folder):
        raise NO_SUCH_FILE.at(path=path, why="does not exist")
    if not _is_text(made.path):
        raise NO_SUCH_FILE.at(path=path, why="has a name that is not UTF-8, and texts have to name it: rename it")
    _FILES[made.name] = made
    made.run()
    return made


@contextmanager
def at_home(flow: Any) -> Iterator[None]:
    """Run the methods of a flow, or of its class, where its file lies: imports in them find its siblings."""
    cls = flow if isinstance(flow, type) else type(flow)
    file = _FILES.get(getattr(cls, "__module__", ""))
    if file is None:
        yield
        return
    with file.entered():
        yield

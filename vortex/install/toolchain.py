"""The compiler's own environment, beside the one that serves: an engine and the compiler pin different versions.

It is made once, by ``vortex toolchain install``, and found by an engine's start. Everything here works without the
compiler, in the engine's environment.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from vortex import __version__
from vortex.errors import NO_SUCH_FILE, TOOLCHAIN_FAILED, writing
from vortex.install.cache import cache_root

STAMP = "vortex.json"
"""In the environment's folder when it is complete: which vortex it has, and where that came from."""

SHARE = (
    "import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'parent.pth').write_text(sys.argv[1])"
)
CHECK = "import tvm, vortex.driver; print(vortex.__version__)"


def folder() -> Path:
    """Where the environment is looked for."""
    return cache_root() / "toolchain"


def interpreter(where: Path) -> Path:
    """The Python of the environment in ``where``."""
    return where / "bin" / "python"


def version(where: Path | None = None) -> str | None:
    """Of the vortex in the environment; None for none, or one that was not completed."""
    try:
        made = json.loads(((where or folder()) / STAMP).read_text(encoding="utf-8"))
        return str(made["vortex"]) if interpreter(where or folder()).exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def installed() -> Path | None:
    """The Python of the environment, if it has this version of vortex: an artifact's format is the compiler's."""
    return interpreter(folder()) if version() == __version__ else None


def clean_environment() -> dict[str, str]:
    """The environment variables of this process without what points Python at this process's packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def requirement(source: str | None = None, cuda: bool = True) -> str:
    """What pip is asked for: vortex as it was installed here, of this version, or from ``source``, a folder or wheel.

    Raises:
        VortexError: VX7002 when ``source`` is not there.
    """
    extras = "compile,cuda" if cuda else "compile"
    if source is not None and not Path(source).exists():
        raise NO_SUCH_FILE.at(path=source, why="does not exist; a folder with pyproject.toml or a wheel is needed")
    url = Path(source).absolute().as_uri() if source is not None else _origin()
    return f"vortex[{extras}] @ {url}" if url else f"vortex[{extras}]=={__version__}"


def _origin() -> str | None:
    """The URL that vortex was installed from here, if no package index."""
    try:
        text = distribution("vortex").read_text("direct_url.json")
    except PackageNotFoundError:
        root = Path(__file__).parents[2]
        return root.as_uri() if (root / "pyproject.toml").exists() else None
    if not text:
        return None
    found = json.loads(text)
    if vcs := found.get("vcs_info"):
        return f"{vcs['vcs']}+{found['url']}@{vcs['commit_id']}"
    return str(found["url"])


@dataclass(frozen=True, slots=True)
class Installation:
    """How the environment comes to be, in commands.

    ``wanted`` is pip's requirement; ``share_torch`` lets the environment see this one's packages behind its own, so
    that torch is not downloaded again.
    """

    where: Path
    python: str
    wanted: str
    share_torch: bool = False

    def commands(self) -> dict[str, list[str]]:
        """What each does -> its words, in order."""
        own = str(interpreter(self.where))
        steps = {f"making an environment in {self.where}": [self.python, "-m", "venv", "--clear", str(self.where)]}
        if self.share_torch:
            steps["sharing this environment's packages"] = [own, "-c", SHARE, sysconfig.get_path("purelib")]
        pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", self.wanted]
        return {**steps, f"installing {self.wanted}": pip, "checking the compiler": [own, "-I", "-c", CHECK]}

    def run(self, tell: Callable[[str], None]) -> None:
        """Do it; ``tell`` is given each step's name before the step. What fails leaves nothing behind.

        Raises:
            VortexError: VX9006, or VX7004 when the disk has no room for the last file.
        """
        said = ""
        try:
            for step, words in self.commands().items():
                tell(step)
                said = _run(step, words)
            got = said.strip().rpartition("\n")[2]
            if got != __version__:
                why = f"it has vortex {got}, and {__version__} asks for it"
                raise TOOLCHAIN_FAILED.at(step="checking the compiler", why=why, hint="name another one with --from")
            made = {"vortex": got, "from": self.wanted, "python": self.python}
            with writing(self.where / STAMP):
                (self.where / STAMP).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        except BaseException:
            shutil.rmtree(self.where, ignore_errors=True)
            raise


def _run(step: str, words: list[str]) -> str:
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError as error:
        raise TOOLCHAIN_FAILED.at(
            step=step, why=f"{words[0]}: {error.strerror}", hint="name one with --python"
        ) from None
    if done.returncode:
        why = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise TOOLCHAIN_FAILED.at(step=step, why=why, hint=f"the command was: {shlex.join(words)}")
    return done.stdout


def default_python() -> str:
    """The interpreter that makes the environment unless another is named: this one."""
    return sys.executable

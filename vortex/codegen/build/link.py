"""From object files to a shared library that needs nothing of TVM.

An object comes out of a TVM executable by ``executable.mod.write_to_file(path, "o")`` (not
``export_library``, which would pack and link by TVM's rules). Its functions are ``__tvm_ffi_<name>``, and it
has two kinds of loose ends: ``TVMFFI*``, which the ``libtvm_ffi.so`` of the running process has (0.1.11 and
0.1.14 alike), and the ``__TVMBackend*`` pointers, which :file:`host_threads.c` fills.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vortex.errors import NO_COMPILER, TOOL_FAILED

HOST_THREADS = Path(__file__).with_name("host_threads.c")
FLAGS = ("-shared", "-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-fopenmp", "-fvisibility=hidden")


def find_c_compiler() -> list[str]:
    """The command of the C compiler: ``$CC`` where it is set, else cc, gcc or clang.

    Raises:
        VortexError: VX4003 when there is none.
    """
    chosen = os.environ.get("CC")
    for command in [shlex.split(chosen)] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if command and shutil.which(command[0]):
            return command
    what = f"the C compiler '{chosen}' of $CC" if chosen else "a C compiler"
    raise NO_COMPILER.at(what=what, hint="e.g. apt install gcc")


def link_cpu(objects: Sequence[Path], out: Path) -> None:
    """Link ``objects`` and the thread shim into ``out``, which appears whole or not at all.

    Raises:
        VortexError: VX4003 without a C compiler, VX4005 when it fails.
    """
    compiler = find_c_compiler()
    with tempfile.TemporaryDirectory(prefix=".link-", dir=out.parent) as scratch:
        made = Path(scratch) / out.name
        command = [*compiler, *FLAGS, *map(str, objects), str(HOST_THREADS), "-o", str(made), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            why = "\n".join((done.stderr or done.stdout).strip().splitlines()[:20])
            why = why or f"exit code {done.returncode}"
            raise TOOL_FAILED.at(tool=compiler[0], why=why, command=shlex.join(command))
        os.replace(made, out)

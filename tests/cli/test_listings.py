"""Listings for people and for programs."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Vortex
from vortex.cli.main import USER_ERROR
from vortex.cli.show import plain
from vortex.errors import CATALOGUE


@pytest.mark.parametrize("name", ["ops", "passes", "kinds", "errors", "targets", "info"])
def test_listing_as_text_and_json(vortex: Vortex, name: str) -> None:
    found = vortex(name)
    assert (found.code, found.err) == (0, "")
    assert len(found.out.splitlines()) > 3
    assert json.loads(vortex(name, "--json").out)
    if name != "info":
        assert vortex("info", name).out == found.out


def test_at_least_45_operations(vortex: Vortex) -> None:
    names = {r["name"].rpartition(".")[2] for r in json.loads(vortex("ops", "--json").out)}
    assert len(names) >= 45
    assert {"softmax", "where", "einsum", "amax", "conv1d"} <= names


def test_ir_operations(vortex: Vortex) -> None:
    names = [r["name"] for r in json.loads(vortex("ops", "--ir", "--json").out)]
    assert {"flow.dot", "flow.topk", "page.load", "page.attend"} <= set(names)


def test_every_error_is_explained(vortex: Vortex) -> None:
    assert [r["code"] for r in json.loads(vortex("errors", "--json").out)] == list(CATALOGUE)
    assert vortex("errors", "vx1002").out.startswith("VX1002: branch on a traced value")


def test_one_pass(vortex: Vortex) -> None:
    found = vortex("passes", "fuse")
    assert found.out.startswith("fuse: reads page IR, exact")
    assert "option max-live" in found.out


@pytest.mark.parametrize("args", [("ops", "sofmax"), ("passes", "fus"), ("errors", "VX1")])
def test_unknown_names(vortex: Vortex, args: tuple[str, str]) -> None:
    found = vortex(*args)
    assert found.code == USER_ERROR
    assert "did you mean" in found.err


def test_plain_table_aligns_numbers_right() -> None:
    text = plain(("name", "n"), [["a", "5"], ["bb", "10"]])
    assert text == "name   n\na      5\nbb    10\n"

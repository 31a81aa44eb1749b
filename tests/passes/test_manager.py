"""Pipelines as text, options, the registry, and what a broken pass is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.ir.samples import QUEST
from vortex.errors import VortexError
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes import manager
from vortex.passes.manager import (
    DEFAULT_PIPELINE,
    Pass,
    PassCall,
    PassContext,
    Ran,
    listing,
    parse_pipeline,
    register,
    run_pipeline,
)


@pytest.fixture(autouse=True)
def _no_probe_left() -> Iterator[None]:
    yield
    manager.PASSES.pop("probe", None)


def declare_probe() -> type[Pass]:
    @register("probe", stage="any", tag="exact", version=3)
    @dataclass(frozen=True, slots=True)
    class Probe(Pass):
        """Does nothing."""

        max_live: int = 8
        ratio: float = 0.5
        deep: bool = False
        note: str = "x"

        def run(self, module: Module, ctx: PassContext) -> Module:
            if self.note == "break":
                module.functions["index"].ops.pop()
            return module

    return Probe


def test_pipelines_as_text() -> None:
    assert parse_pipeline("") == parse_pipeline("  ") == []
    calls = parse_pipeline(" canonicalize , fuse{ max-live = 8 },cse{}\n,dce")
    assert calls == [PassCall("canonicalize"), PassCall("fuse", {"max-live": "8"}), PassCall("cse"), PassCall("dce")]
    assert parse_pipeline(",".join(map(str, calls))) == calls


def test_options_become_fields() -> None:
    kind = declare_probe()
    (call,) = parse_pipeline("probe{max-live=-3,ratio=1e-3,deep=true,note=a-b}")
    assert call.build() == kind(max_live=-3, ratio=1e-3, deep=True, note="a-b")  # type: ignore[call-arg]


BAD = [
    ("cannonicalize", "VX3001", "did you mean 'canonicalize'?"),
    ("cse,,dce", "VX3003", "expected a pass name, found ','"),
    ("cse,", "VX3003", "found the end"),
    ("cse dce", "VX3003", "found 'd'"),
    ("cse{", "VX3003", "found '{'"),
    ("fuse{max-live}", "VX3003", "an option such as"),
    ("fuse{max-live=1,}", "VX3003", "an option such as"),
    ("fuse{max-live=1 2}", "VX3003", "',' or '}'"),
    ("fuse{max-life=8}", "VX3002", "did you mean 'max-live'?"),
    ("fuse{max-live=eight}", "VX3002", "'max-live' is int, got 'eight'"),
    ("probe{deep=yes}", "VX3002", "'deep' is bool, got 'yes'"),
    ("probe{deep=true,deep=true}", "VX3002", "given twice"),
    ("cse{x=1}", "VX3002", "no option 'x'"),
    ("outline,canonicalize,outline", "VX3004", "runs on flow IR, but gets page"),
]


@pytest.mark.parametrize(("text", "code", "part"), BAD, ids=[b[0] for b in BAD])
def test_bad_pipelines(text: str, code: str, part: str) -> None:
    declare_probe()
    with pytest.raises(VortexError) as info:
        run_pipeline(parse_module(QUEST), text, PassContext())
    assert info.value.code == code
    assert part in info.value.render()


def test_a_pass_that_breaks_the_ir_is_named() -> None:
    declare_probe()
    with pytest.raises(VortexError) as info:
        run_pipeline(parse_module(QUEST), "cse,probe{note=break},dce", PassContext())
    assert info.value.code == "VX2008"
    assert info.value.notes == ["the input of pass 'probe' (#2 of 3) verified; its output does not"]


def test_on_pass_sees_every_step_and_the_argument_stays() -> None:
    m = parse_module(QUEST)
    text = print_module(m)
    seen: list[tuple[int, str, bool]] = []
    last = [text]

    def on_pass(ran: Ran) -> None:
        assert ran.before == last[0]
        last[0] = ran.after
        assert ran.stage == ("flow" if ran.call.name == "cse" else "page")
        seen.append((ran.number, ran.call.name, ran.before == ran.after))

    out = run_pipeline(m, parse_pipeline("cse,outline,fuse"), PassContext(), on_pass)
    assert [s[:2] for s in seen] == [(1, "cse"), (2, "outline"), (3, "fuse")]
    assert [s[2] for s in seen] == [True, False, False]
    assert last[0] == print_module(out)
    assert print_module(m) == text


def test_listing_has_every_pass() -> None:
    found = {p.name: p for p in listing()}
    assert list(found) == list(manager.MODULES)
    for p in found.values():
        assert p.stage in ("flow", "page", "any")
        assert p.tag in ("exact", "real")
        assert p.doc
        assert p.version >= 1
    assert "->" in found["reassociate"].doc
    assert found["fuse"].options[0].name == "max-live"
    for text in DEFAULT_PIPELINE.values():
        assert all(call.name in found for call in parse_pipeline(text))


def test_the_registry_is_cheap_to_import() -> None:
    heavy = ["torch", "tvm", "vortex.passes.fuse", "vortex.passes.canonicalize"]
    code = f"import sys, vortex.passes.manager; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

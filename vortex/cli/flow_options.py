"""The options of commands that begin with a flow: which one, and the model's shape."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vortex.ir.core import Module
    from vortex.spec import Spec
    from vortex.target import Target

SPEC = ("heads", "head_dim", "page_size", "dtype")
"""Options that make up the model shape."""


def add_flow(parser: argparse.ArgumentParser, about: str = "name, file.py or file.py:name") -> None:
    """Declare FLOW."""
    parser.add_argument("flow", metavar="FLOW", help=about)


def add_spec(parser: argparse.ArgumentParser) -> None:
    """Declare the model's shape."""
    parser.add_argument("--heads", metavar="Q/KV", help="query and KV heads of the model (default: 32/8)")
    parser.add_argument("--head-dim", metavar="N", type=int, help="elements of a head (default: 128)")
    parser.add_argument("--page-size", metavar="N", type=int, help="tokens of a page (default: 16)")
    parser.add_argument("--dtype", metavar="TYPE", help="bf16, f16 or f32: K, V and Q in memory (default: bf16)")


def spec_of(args: argparse.Namespace) -> Spec:
    """The model's shape that the options say, defaults for the rest; VX1021."""
    from vortex.spec import Spec

    given = {name: getattr(args, name) for name in SPEC if getattr(args, name) is not None}
    return Spec.of_heads(given.pop("heads", "32/8"), **given)


def flow_program(args: argparse.Namespace, target: Target) -> Module:
    """The page program of ``args.flow`` for ``target``, nothing chosen from a database."""
    from vortex.driver import compile_flow

    return compile_flow(args.flow, spec=spec_of(args), targets=[target], to="page").programs[target.name]

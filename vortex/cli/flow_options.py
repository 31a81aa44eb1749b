"""The options of commands that begin with a flow: which one, and the model's shape."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vortex.errors import BAD_OPTION

if TYPE_CHECKING:
    from vortex.ir.core import Module
    from vortex.spec import Spec
    from vortex.targets.target import Target

SPEC = (
    "heads",
    "head_dim",
    "latent",
    "page_size",
    "block_size",
    "dtype",
    "kv_dtype",
    "budget_table",
    "request_budgets",
)
"""Options that make up the model shape."""


def add_spec(parser: argparse.ArgumentParser) -> None:
    """Declare the model's shape."""
    parser.add_argument(
        "--heads", metavar="Q/KV", help="query and KV heads, or heads with --latent (default: 32/8, 128)"
    )
    parser.add_argument("--head-dim", metavar="N", type=int, help="elements of a head (default: 128)")
    parser.add_argument("--latent", metavar="R+ROPE", help="MLA: compressed KV and rotary key of a token, e.g. 512+64")
    parser.add_argument("--page-size", metavar="N", type=int, help="tokens of a page (default: 16)")
    parser.add_argument(
        "--block-size", metavar="N", type=int, help="tokens of what is selected, a part of a page (default: a page)"
    )
    parser.add_argument("--dtype", metavar="TYPE", help="bf16, f16 or f32: K, V and Q in memory (default: bf16)")
    parser.add_argument(
        "--kv-dtype", metavar="TYPE", help="K and V, or latent rows, alone: fp8_e4m3, with scales (default: as --dtype)"
    )
    parser.add_argument(
        "--budget-table", action="store_true", default=None, help="rows have budgets by layer and head: Budget(table=)"
    )
    parser.add_argument(
        "--request-budgets", action="store_true", default=None, help="requests may have budgets of their own"
    )


def spec_of(args: argparse.Namespace) -> Spec:
    """The model's shape that the options say, defaults for the rest; VX1021, VX7001."""
    from vortex.spec import Spec

    given = {name: getattr(args, name) for name in SPEC if getattr(args, name) is not None}
    if "latent" not in given:
        return Spec.of_heads(given.pop("heads", "32/8"), **given)
    if "head_dim" in given:
        raise BAD_OPTION.at(option="--head-dim", why="is what --latent adds up to", hint="give one of them")
    return Spec.of_latent(given.pop("latent"), given.pop("heads", 128), **given)


def flow_program(args: argparse.Namespace, target: Target) -> Module:
    """The page program of ``args.flow`` for ``target``, nothing chosen from a database."""
    from vortex.driver import compile_flow

    return compile_flow(args.flow, spec=spec_of(args), targets=[target], to="page").programs[target.name]

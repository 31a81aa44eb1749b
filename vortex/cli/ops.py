"""What a flow may use of torch, and what it becomes; with --ir, the operations of the IR.

examples:
  vortex ops
  vortex ops softmax
  vortex ops --ir --json
"""

from __future__ import annotations

import argparse
import inspect

from vortex.cli.show import listing
from vortex.errors import UNKNOWN_NAME, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only what has this name, e.g. softmax")
    parser.add_argument("--ir", action="store_true", help="list the operations of the IR instead")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List."""
    rows = ir_ops() if args.ir else torch_ops()
    if args.name is not None:
        known = {str(name): r for r in rows for name in (r["name"], str(r["name"]).rpartition(".")[2])}
        chosen = [r for r in rows if args.name in (r["name"], str(r["name"]).rpartition(".")[2])]
        if not chosen:
            raise UNKNOWN_NAME.at(what="operation", name=args.name, nearest=nearest(args.name, known))
        rows = chosen
    listing(rows, args.json)
    return 0


def torch_ops() -> list[dict[str, str]]:
    """The torch functions and methods that can be traced."""
    from vortex.flow.optable import listing as found

    return found()


def ir_ops() -> list[dict[str, str]]:
    """The operations of both dialects, as their declarations have them."""
    from vortex.ir.core import OPS
    from vortex.ir.dialects import flow, page  # noqa: F401 - their ops register themselves

    rows = []
    for name, cls in sorted(OPS.items()):
        form = cls.form
        operands = [f"%{n}" for n in form.operands] + ([f"%{form.variadic}..."] if form.variadic else [])
        attrs = ", ".join(f"{f.name}: {f.type}" for f in form.attrs if f.name != "type")
        doc = (inspect.getdoc(cls) or "").partition("\n")[0]
        rows.append({"name": name, "operands": ", ".join(operands), "attributes": attrs, "does": doc})
    return rows

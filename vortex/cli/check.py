"""Check a flow: is it right at all shapes, what does a step cost, what would be slow on a GPU and why.

The flow is taken to page IR at some thirty model shapes, to TensorIR for a CPU and a GPU, and its compiled CPU kernels
are compared with its own eager code at three shapes. No GPU is needed. The exit code is 1 when something is wrong, and
0 also where something is slow.

examples:
  vortex check quest
  vortex check my_flow.py:mine --json
  vortex check quest --heads 16/8 --page-size 32 --batch 8 --tokens 131072
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from vortex.cli.exit_codes import CHECK_FAILED
from vortex.cli.flow_options import SPEC, add_spec, spec_of
from vortex.cli.numbers import bounded
from vortex.cli.show import emit_json, progress, table
from vortex.errors import counted

if TYPE_CHECKING:
    from vortex.check.flow_check import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("flow", metavar="FLOW", help="name, file.py or file.py:name")
    add_spec(parser)
    parser.add_argument("--batch", metavar="N", type=int, default=32, help="requests that costs are for (default: 32)")
    parser.add_argument(
        "--tokens", metavar="N", type=int, default=32768, help="tokens of each of them (default: 32768)"
    )
    parser.add_argument(
        "--pages", metavar="N", type=int, default=27, help="scored pages that a row keeps beside 3 (default: 27)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; docs/check.md has the schema")


def run(args: argparse.Namespace) -> int:
    """Check; 1 when the flow is wrong somewhere."""
    for option in ("batch", "tokens"):
        bounded(args, option, 1)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vortex.budget import Budget
    from vortex.check.flow_check import check_flow
    from vortex.flow.flow import find_flow
    from vortex.tune.choose import Chooser
    from vortex.tune.layers import Layers
    from vortex.tune.shapes import Shape

    flow, budget = find_flow(args.flow), Budget(args.pages)
    given = any(getattr(args, o) is not None for o in SPEC)
    spec = spec_of(args) if given else None
    kv_heads = int((args.heads or "32/8").partition("/")[2] or 1)
    with progress(f"checking {args.flow}", 40) as advance:
        report = check_flow(
            flow,
            spec,
            batch=args.batch,
            tokens=args.tokens,
            kv_heads=kv_heads,
            budget=budget,
            resources=True,
            choose_for=lambda *shape: Chooser(Layers.default(), Shape(*shape)),
            advance=advance,
        )
    if args.json:
        emit_json(report.as_json())
    else:
        _print(report)
    return 0 if report.ok else CHECK_FAILED


def _print(report: Report) -> None:
    from vortex.targets.gpu import MACHINES

    for f in report.findings:
        print(f.text)
        if f.shapes:
            every = len(f.shapes) == len(report.shapes) + 1
            print(f"   = at: {'all shapes' if every else f'{len(f.shapes)} of the shapes, e.g. {f.shapes[0]}'}")
        print()
    if report.kernels:
        head = ("kernel", "read", "written", "most of it")
        rows = [
            [k.kernel, _size(report.rows * k.read), _size(report.rows * k.written), _most(k.buffers, report.rows)]
            for k in report.kernels
        ]
        about = f"{report.batch} requests of {report.tokens} tokens, {report.kv_heads} KV heads, {report.spec}"
        table(head, rows, f"one layer, one step: {about}")
        print()
        name, machine = next(iter(MACHINES.items()))
        share = report.page_bytes / report.pool_bytes if report.pool_bytes else 0.0
        scalar = [c for c in report.contractions if c.why_scalar]
        facts = [
            ("launches", f"{report.launches} a layer, and plan once a step"),
            ("summaries", f"{report.page_bytes} bytes a page and KV head, {share:.1%} of its K and V"),
            ("step", f"{_size(report.step_bytes)} a layer; {machine.name} ({name}) copies that in "
             f"{report.microseconds(name):.0f} us, and no kernel can be faster"),
            ("contractions", f"{len(report.contractions)} over pages, {len(scalar)} of them not on tensor cores"),
        ]  # fmt: skip
        facts.append(("registers", _registers(report)))
        if report.state_bytes:
            all_rows = _size(report.rows * report.state_bytes)
            text = f"{report.state_bytes} bytes a request, layer and KV head; {all_rows} a layer for these requests"
            facts.insert(2, ("state", text))
        for what, text in facts:
            print(f"{what:<13} {text}")
    for what in report.skipped:
        print(f"{'skipped':<13} {what}")
    for c in report.compared:
        verdict = "agrees with" if c.ok else "DIFFERS from"
        print(f"{'compiled':<13} {verdict} the eager flow at {c.shape}: error {c.error:.1e}, {c.differing} other pages")
    wrong = sum(f.severity == "error" for f in report.findings)
    slow = f"{counted(len(report.findings) - wrong, 'remark')} on speed"
    told = f"{counted(len(report.shapes), 'shape')} to page IR, {counted(wrong, 'error')}, {slow}"
    print(f"{'verdict':<13} {report.flow} is {'right' if report.ok else 'wrong'}: {told}")


def _registers(report: Report) -> str:
    if not report.resources:
        return f"not looked at: {report.no_resources}"
    kernels = [
        f"{name} {r['registers']} a lane, {r['spills']} bytes spilled, {counted(r['ctas'], 'CTA')} an SM"
        for name, r in report.resources.items()
    ]
    return "; ".join(kernels)


def _size(n: float) -> str:
    return f"{n / 1e6:.2f} MB" if n >= 1e4 else f"{n:.0f} B"


def _most(buffers: dict[str, float], rows: int) -> str:
    return ", ".join(f"{name} {_size(rows * n)}" for name, n in list(buffers.items())[:3])

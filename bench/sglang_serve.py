"""SGLang's whole server, started by its command line and asked over HTTP: answers checked, then served at load.

Parts, each under a limit of its own; the checks run side by side on one GPU, the figures alone:

* ``tokens``: a small Qwen3. With every page read the answers are those of SGLang's dense backend, at once, from the
  cache, one by one, in chunks and with mixed chunks; with few pages those of a simulation in plain torch.
* ``two_steps``: the same of a flow with a shortlist, some prompts of more pages than that.
* ``fp8``: the same of K and V in fp8_e4m3 with the scales of a checkpoint, by a simulation that keeps them so; beside
  it, as ``f16``, the same weights with K and V in 16 bits.
* ``smollm2``: the same of a real model, and the number in its prompt found with 64 pages (where its weights are).
* ``churn``: 500 requests that join, leave, are aborted and lose their memory in a small pool: nothing is lost, and each
  says what a simulation says that is told where it was retracted.
* ``latent``: a DeepSeek V2 with the latent rows of V2-Lite (MLA): as ``tokens``, without chunks that are not mixed;
  ``latent_fp8`` the same with rows in fp8_e4m3, beside a dense backend that has them, too.
* ``full``: mixed chunks in a pool that running requests fill while a prompt is being read: how a server ends, dense and
  sparse, and that without mixed chunks none does.
* ``hicache``: what was saved, evicted and loaded back says the same again.
* ``figures``: SGLang's own bench_serving against the shape of Qwen3-1.7B (or 8B: ``--wave 8b/quest=8x32768``). Servers
  of a ``--wave`` start side by side and are asked in turn, alone. ``quest+fa3`` is a flow whose prompts FA3 reads, and
  the dense ones are ``triton``, ``fa3``, ``flashinfer`` and ``flashinfer_tc`` (where these are staged).

In 16 bits two dense runs differ as well, so ``as_dense`` has the dense backend against itself as its control, and tells
how near the next best token came where answers part. ``as_simulated`` takes each token by itself: how far its logit is
below the best in the simulation, given what was said before it. ``by_all_pages`` asks a simulation that reads every
page, which answers from few pages must not please. Where few pages are read, 16 bits choose other pages at near ties:
of a simulation in f16 the one in f32 finds 111 of 160 tokens best, 5 where it reads all pages (with every page read by
both, 156). Runs where SGLang 0.5.16 or 0.5.23 imports
(bench/parts/serve.sh stages it):

    python3 bench/sglang_serve.py --artifacts .gpu/serve --out $OUT/serve.json tokens churn
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from pathlib import Path

from serving.bench import Bench, together
from serving.checks import fp8, hicache, latent, latent_fp8, smollm2, tokens, two_steps
from serving.figures import LOADS, figures, load_of
from serving.pools import CHURN, FULL, churn, full

PARTS: dict[str, Callable[[Bench], None]] = {
    "tokens": tokens,
    "two_steps": two_steps,
    "fp8": fp8,
    "full": full,
    "smollm2": smollm2,
    "churn": churn,
    "latent": latent,
    "latent_fp8": latent_fp8,
    "hicache": hicache,
    "figures": figures,
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("parts", nargs="+", choices=PARTS)
    words.add_argument("--artifacts", type=Path, default=Path("."), help="folder that bench/parts/serve.sh staged")
    words.add_argument("--device", default="cuda", help="cpu tries the script, with flows by name")
    words.add_argument("--dtype", help="of the checks: float16, on a CPU float32")
    words.add_argument("--requests", type=int, default=500, help="of churn")
    words.add_argument("--churn", nargs="*", default=CHURN, choices=CHURN, help="servers of churn")
    words.add_argument(
        "--prefill-graphs",
        default="",
        choices=["breakable", "disabled"],
        help="of prompts (default: as SGLang has them)",
    )
    words.add_argument("--start-seconds", type=int, default=180, help="a server may take to start")
    words.add_argument("--seconds", type=int, default=0, help="after which everything is stopped (default: never)")
    words.add_argument("--side-by-side", type=int, default=14, help="servers at a time")
    words.add_argument(
        "--rows", nargs="*", default=[], help="servers beside the dense one, e.g. tokens-3-pages (default: all)"
    )
    words.add_argument("--full", nargs="*", default=FULL, choices=FULL, help="servers of full")
    words.add_argument(
        "--wave", type=load_of, nargs="+", action="append", metavar="NAME=BATCHxTOKENS[,...]",
        help="servers of the figures that start side by side: a dense backend or a flow (8b/ before it), and loads"
    )  # fmt: skip
    words.add_argument("--flashinfer", type=Path, help="folder to import FlashInfer from, by servers that use it")
    words.add_argument("--new", type=int, default=512, help="tokens of the figures' answers")
    words.add_argument("--rates", type=float, nargs="*", default=[1.0], help="requests a second beside all at once")
    words.add_argument("--out", type=Path, required=True)
    args = words.parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "float16")
    args.out = args.out.absolute()
    args.wave = [dict(wave) for wave in args.wave or [[load_of(one)] for one in LOADS]]
    if "figures" in args.parts and max(map(len, args.wave)) > args.side_by_side:
        words.error("servers of a wave start side by side: --side-by-side is less than a wave has")
    bench = Bench(args)
    (bench.servers.logs / "serve_failed.log").unlink(missing_ok=True)
    for one in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(one, bench.servers.stop)
    signal.alarm(args.seconds)

    def run(part: str) -> None:
        with bench.report.attempt(part):
            PARTS[part](bench)
        bench.report.say(f"{part}: over")

    for kind in ("grouped", "latent", *(("calm", "scaled") if "fp8" in args.parts else ())):
        with bench.report.attempt("models", kind):
            bench.model(kind)
    if checks := [part for part in args.parts if part != "figures"]:
        together(run, checks)
    bench.judge.close()
    if "figures" in args.parts:
        run("figures")


if __name__ == "__main__":
    main()

"""Answers, judged: small models of several kinds, and a real one."""

from __future__ import annotations

import json
from typing import Any

from serving.bench import FLOWS, LENGTHS, LONG_LENGTHS, TOKENS, Bench, choice_of, label_of, together


def tokens(bench: Bench) -> None:
    from harness import prompts

    asked, model = prompts(1, LENGTHS), bench.model("grouped")
    everything = {"flow": bench.flow("tiny"), "budget": {"pages": 100000}}
    few = {"flow": bench.flow("tiny"), "budget": {"pages": 3}}
    chosen = {"flow": bench.flow("chosen"), "budget": {"pages": 3}, "per_request": {"dense": True}}
    chunks = {"chunked_prefill_size": 128}
    mixed = chunks | {"enable_mixed_chunk": True}
    bench.compared("tokens", model, asked, {
        "dense": (None, {}),
        "dense, mixed chunks": (None, mixed),
        "all pages": (everything, {}),
        "all pages, chunks": (everything, chunks),
        "all pages, mixed chunks": (everything, mixed),
        "all pages, deterministic": (everything | {"deterministic": True}, {}),
        "3 pages": (few, {}),
        "3 pages, mixed chunks": (few, mixed),
        "pages by request": (chosen, {}),
    }, chosen={"pages by request": [(3, None, 6)[n % 3] for n in range(len(asked))]})  # fmt: skip


def two_steps(bench: Bench) -> None:
    """A flow with a shortlist: with few requests at once, a cluster of CTAs chooses the pages of a row."""
    from harness import prompts

    bench.compared("two_steps", bench.model("grouped"), prompts(1, LONG_LENGTHS), {
        "dense": (None, {}),
        "3 pages": ({"flow": bench.flow("two_steps"), "budget": {"pages": 3}}, {}),
    })  # fmt: skip


def smollm2(bench: Bench) -> None:
    from vortex.evaluate.models import model_folder

    asked = json.loads((bench.args.artifacts / "needles.json").read_text())
    model = model_folder("smollm2")
    prompts, length = [one["tokens"] for one in asked], max(len(one["answer"]) for one in asked) + 24
    room: dict[str, Any] = {"max_total_tokens": 65536, "context_length": 4096}
    config = {"flow": bench.flow("smollm2"), "budget": {"pages": 64}, "per_request": {"pages": 1000}}
    most = [choice_of(1000)] * len(prompts)
    dense: list[dict[str, Any]] = []
    found: list[tuple[str, list[dict[str, Any]], dict[str, int]]] = []

    def ask(name: str) -> None:
        chosen = None if name == "dense" else config
        with (
            bench.report.attempt("smollm2", name),
            bench.servers.start(f"smollm2-{name}", model, chosen, **room) as server,
        ):
            if chosen is None:
                dense.extend(bench.control("smollm2", server, prompts, length))
                found.append(("dense", dense, server.graphs()))
                return
            for label, more, at_once in (
                ("all pages, by request", most, True),
                ("all pages, cached", most, True),
                ("all pages, one by one", most, False),
                ("64 pages", [], True),
            ):
                found.append((label, server.all(prompts, length, at_once, more), server.graphs()))

    together(ask, ["dense", "vortex"])
    for label, said, graphs in found:
        right = sum(s["ids"][: len(a["answer"])] == a["answer"] for s, a in zip(said, asked, strict=True))
        bench.report.add(
            "smollm2", name=label, as_dense=bench.judge.agree(said, dense) if dense else None,
            needles=f"{right} of {len(asked)}", cached=sum(one["cached"] for one in said), graphs=graphs,
        )  # fmt: skip


def fp8(bench: Bench) -> None:
    from harness import prompts
    from weights import SCALES

    asked = prompts(1, LENGTHS)
    if bench.args.dtype == "float32":
        raise SystemExit("K and V in fp8 need a model in 16 bits: --dtype float16")

    def ask(part: str) -> None:
        kind, artifact = ("scaled", "scaled") if part == "fp8" else ("calm", "tiny")
        few = {"flow": bench.flow(artifact), "budget": {"pages": 3}}
        servers: dict[str, tuple[dict[str, Any] | None, Any]] = {"dense": (None, {}), "3 pages": (few, {})}
        if part == "f16":
            bench.compared(part, bench.model(kind), asked, servers)
            return
        if bench.cpu:
            del servers["dense"]  # SGLang's torch_native knows no scales
        servers["all pages"] = {"flow": bench.flow(artifact), "budget": {"pages": 100000}}, {}
        stored = {name: (config, {"kv_cache_dtype": "fp8_e4m3"}) for name, (config, _) in servers.items()}
        bench.compared(part, bench.model(kind), asked, stored, {"scales": SCALES, "triton": not bench.cpu}, {
            "by_no_scales": {"scales": [(1.0, 1.0)] * len(SCALES)},
            "by_f16": {"scales": ()},
            "by_rows_of_the_pool": {"triton": False},
        })  # fmt: skip

    together(ask, ["fp8", "f16"])


def latent(bench: Bench) -> None:
    from harness import prompts

    asked, model = prompts(1, LENGTHS), bench.model("latent")
    everything = {"flow": bench.flow("latent"), "budget": {"pages": 100000}}
    few = {"flow": bench.flow("latent"), "budget": {"pages": 3}}
    mixed = {"chunked_prefill_size": 128, "enable_mixed_chunk": True}
    bench.compared("latent", model, asked, {
        "dense": (None, {}),
        "dense, mixed chunks": (None, mixed),
        "all pages": (everything, {}),
        "all pages, mixed chunks": (everything, mixed),
        "3 pages": (few, {}),
    })  # fmt: skip


def latent_fp8(bench: Bench) -> None:
    from harness import prompts

    # in others an error of rounding grows from layer to layer, and two right answers have little in common
    asked, model, narrow = prompts(1, LENGTHS), bench.model("calm_latent"), {"kv_cache_dtype": "fp8_e4m3"}
    flow = bench.flow("latent_fp8")
    bench.compared("latent_fp8", model, asked, {
        "dense": (None, narrow),
        "all pages": ({"flow": flow, "budget": {"pages": 100000}}, narrow),
        "3 pages": ({"flow": flow, "budget": {"pages": 3}}, narrow),
    }, {"narrow_rope": 64, "triton": not bench.cpu}, {
        "by_whole_rows": {"narrow_rope": 0},
        "by_rows_of_the_pool": {"triton": False},
    })  # fmt: skip


def hicache(bench: Bench) -> None:
    from harness import prompts

    first, other = prompts(3), prompts(7)
    asked = (first, other, first, other, first)
    back = {"enable_hierarchical_cache": True, "hicache_ratio": 4, "max_total_tokens": 1024, "max_running_requests": 8}
    ways = {"loaded back": ("direct", "layer_first"), "loaded back by SGLang's default": ("kernel", "page_first")}

    def ask(name: str) -> None:
        kind, artifact = ("latent", "latent") if name.startswith("MLA") else ("grouped", "tiny")
        settings: dict[str, Any] = {}
        if way := ways.get(name.removeprefix("MLA, ")):
            settings = back | {"hicache_io_backend": way[0], "hicache_mem_layout": way[1]}
        label, model = label_of("hicache", name).replace("'", ""), bench.model(kind)
        witness = bench.folder / f"{label}.jsonl"
        config = {"flow": bench.flow(artifact), "budget": {"pages": 3}}
        with bench.report.attempt("hicache", name):
            with bench.servers.start(label, model, config, witness, **settings) as server:
                passes = [server.all(one, TOKENS) for one in asked]
                row: dict[str, Any] = {"graphs": server.graphs()}
            seen = [json.loads(line) for line in witness.read_text().splitlines()]
            row["loaded_back"] = sum(line["loaded"] for line in seen if "loaded" in line)
            row["cached"] = [sum(one["cached"] for one in said) for said in passes]
            row["again_as_first"] = [bench.judge.agree(passes[i], passes[i % 2]) for i in (2, 3, 4)]
            row["as_simulated"] = [
                bench.judge.by_simulation(model, [
                    {"flow": FLOWS[artifact], "pages": 3, "prompt": p, "answer": s["ids"]}
                    for p, s in zip(one, said, strict=True)
                ])
                for one, said in zip(asked, passes, strict=True)
            ]  # fmt: skip
            bench.report.add("hicache", name=name, **row)

    together(ask, [f"{model}{name}" for model in ("", "MLA, ") for name in (*ways, "control: a pool for all")])

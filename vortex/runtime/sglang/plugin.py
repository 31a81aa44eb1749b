"""The entry point of group ``sglang.srt.plugins``: SGLang calls :func:`activate` in each of its processes.

SGLang logs and swallows what a plug-in raises, so nothing here may fail: what is wrong is said when SGLang checks its
arguments, and again when the backend is made.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from vortex.errors import ENGINE_VERSION, REQUEST_REFUSED, VortexError
from vortex.runtime.page_trace import VARIABLE as TRACE
from vortex.runtime.probes import VARIABLE as PROBE
from vortex.runtime.sglang import last_word
from vortex.runtime.sglang.choice import KEY, choice_of, refusal, slip_of
from vortex.runtime.sglang.config import VARIABLE, EngineConfig

logger = logging.getLogger(__name__)

NAME = "vortex"

SEAMS = {"0.5.16": "seam_0_5_16", "0.5.23": "seam_0_5_23"}
"""Tested version -> the module that knows its interface."""
PROMPT_GRAPHS = {
    "0.5.16": "sglang.srt.server_args.ServerArgs._disable_breakable_cudagraph_if_incompatible",
    "0.5.23": "sglang.srt.arg_groups.cuda_graph_hook.disable_breakable_cudagraph_if_incompatible",
}
"""Tested version -> where SGLang looks whether the prompt graphs that it has by default suit its other arguments; it
does not look where they were asked for.
"""


def activate() -> None:
    """Register the backend ``vortex``, the flag ``--vortex-config`` and the hooks."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    register_attention_backend(NAME)(_make)
    if NAME not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([NAME])
    # SGLang calls it once its arguments are resolved, before it starts a process
    HookRegistry.register("sglang.srt.server_args.ServerArgs.check_server_args", _check, HookType.AFTER)
    if _installed() in SEAMS:
        from vortex.runtime.sglang import arrivals
        from vortex.runtime.sglang.memory import add_summaries, leave_room

        sizes = "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator.calculate_pool_sizes"
        HookRegistry.register(sizes, leave_room, HookType.BEFORE)
        HookRegistry.register("sglang.utils.get_exception_traceback", last_word.leave, HookType.BEFORE)
        HookRegistry.register("sglang.srt.utils.common.kill_process_tree", last_word.before_the_end, HookType.AROUND)
        for target, hook in (
            ("sglang.srt.server_args.ServerArgs.add_cli_args", _add_flag),
            ("sglang.srt.arg_groups.overrides._page_size_default", _page_size),
            (PROMPT_GRAPHS[_installed()], _no_prompt_graphs),
            ("sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size", add_summaries),
            ("sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new", _tell_decode_rows),
            ("sglang.srt.managers.scheduler.Scheduler.get_init_info", _tell_what_is_served),
        ):
            HookRegistry.register(target, hook, HookType.AFTER)
        cache = "sglang.srt.managers.cache_controller"
        HookRegistry.register(f"{cache}.HiCacheController.start_loading", arrivals.expect, HookType.BEFORE)
        HookRegistry.register(f"{cache}.LayerLoadingEvent.complete", arrivals.summarise, HookType.BEFORE)
        # where a request arrives: what it chose is refused there, alone
        HookRegistry.register("sglang.srt.sampling.sampling_params.SamplingParams.verify", _verify, HookType.AFTER)
        if os.environ.get(PROBE) or os.environ.get(TRACE):
            graph = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.can_run_graph"
            HookRegistry.register(graph, _not_where_a_look_is_due, HookType.AFTER)
            batch = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"
            HookRegistry.register(batch, _name_requests, HookType.AFTER)


def _installed() -> str:
    try:
        return version("sglang")
    except PackageNotFoundError:
        return "of an unknown version"


def _seam() -> ModuleType:
    got = _installed()
    if got not in SEAMS:
        raise ENGINE_VERSION.at(got=got, want=" and ".join(SEAMS), newest=max(SEAMS))
    return importlib.import_module(f"vortex.runtime.sglang.{SEAMS[got]}")


def _check(_: None, args: Any) -> None:
    """What is wrong with the start as far as it can be known now; VX9001 for another SGLang."""
    backends = {
        name: getattr(args, name, None)
        for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
    }
    if NAME in backends.values():
        seam = _seam()
        from vortex.runtime.sglang.start import refuse_start

        last_word.expect()
        refuse_start(seam.settings(args), seam.model_of(args))
    elif os.environ.get(VARIABLE):
        logger.warning("vortex: %s is set, and nothing of vortex runs without --attention-backend vortex", VARIABLE)


def _make(runner: Any) -> Any:
    return _seam().Backend(runner)


class _Keep(argparse.Action):
    """Puts the flag's value where every process of the engine looks for it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        os.environ[VARIABLE] = values


def _add_flag(_: None, parser: argparse.ArgumentParser) -> None:
    about = f"configuration of --attention-backend vortex: JSON, or a file of it (default: ${VARIABLE})"
    last_word.alone()
    parser.add_argument("--vortex-config", action=_Keep, default=argparse.SUPPRESS, metavar="JSON", help=about)


def _page_size(default: dict[str, Any], view: Any) -> dict[str, Any] | None:
    """Where no --page-size was given, the configuration's instead of SGLang's 1."""
    if view.page_size is None and view.attention_backend == NAME:
        return {"page_size": EngineConfig.read().page_size}
    return None


def _no_prompt_graphs(_: None, args: Any) -> None:
    """CUDA graphs of prompts are as SGLang has them where they ran under this backend on a GPU, and else for those who
    ask.
    """
    if args.attention_backend != NAME:
        return
    seam = _seam()
    reads = EngineConfig.read().prefill_on(seam.settings(args).device)
    if reads not in seam.GRAPHED_PREFILL and seam.drop_prompt_graphs(args):
        way_in = "--cuda-graph-backend-prefill breakable asks for them, untried"
        # a warning, as SGLang's own for such cases: arguments are resolved before its log is set up
        logger.warning("vortex: no CUDA graphs for prompts that '%s' reads; %s", reads, way_in)


def _verify(done: None, params: Any, vocabulary: int) -> None:
    """ValueError, which SGLang gives the client, for a request whose choice this server does not serve."""
    if not isinstance(params.custom_params, dict):
        return
    slip = slip_of(params.custom_params)
    if not slip and params.custom_params.get(KEY) is None:
        return
    try:
        config = EngineConfig.read()
        if slip and config.per_request is not None:
            raise REQUEST_REFUSED.at(why=f"it is not there, but '{slip}' is, did you mean '{KEY}'?")
        choice_of(params.custom_params, config.per_request, table=bool(config.budget.table))
    except VortexError as error:
        raise ValueError(refusal(error)) from None


def _tell_decode_rows(made: Any, cls: Any, batch: Any, runner: Any, **kwargs: Any) -> None:
    """Before a pass: how many of a mixed batch's last rows decode, which metrics count, and what requests of new
    prompts chose. SGLang's batch for the model does not say, and on the way to the backend it is copied field by
    field, and may no longer call itself mixed.
    """
    if runner.server_args.attention_backend == NAME:
        mode, backend = batch.forward_mode, runner.attn_backend
        rows = len(batch.decoding_reqs or ()) if mode.is_mixed() else 0
        backend.expect_decode_rows(rows)
        chosen = backend.chosen
        if chosen is not None and mode.is_extend():
            backend.learn_choices(batch.req_pool_indices, [r.sampling_params.custom_params for r in batch.reqs])
        if backend.metrics is not None and (rows or mode.is_decode()):
            decoding = batch.reqs[-rows:]
            own = None if chosen is None else [chosen.budget(r.sampling_params.custom_params) for r in decoding]
            backend.metrics.step([backend.tokens_of(r) for r in decoding], own)


def _tell_what_is_served(info: dict[str, Any], scheduler: Any) -> None:
    """What a scheduler says of itself once it is ready, which ``get_server_info`` shows: the backend's part of it."""
    if scheduler.server_args.attention_backend == NAME:
        info[NAME] = scheduler.tp_worker.model_runner.attn_backend.about.facts()


def _not_where_a_look_is_due(may: bool, graphs: Any, batch: Any) -> bool | None:
    """Whether a decode step replays a graph: one that is probed or traced does not, for what it reads cannot be seen in
    one.
    """
    watches = getattr(graphs.model_runner.attn_backend, "watches", ())
    return False if any(watch.due for watch in watches) else None


def _name_requests(made: Any, cls: Any, batch: Any, runner: Any, **kwargs: Any) -> None:
    """Before a pass: what the engine calls its requests, for the lines of probes and page traces."""
    for watch in getattr(runner.attn_backend, "watches", ()):
        watch.requests = tuple(made.rids or ())

"""The entry point of group ``sglang.srt.plugins``: SGLang calls :func:`activate` in each of its processes.

SGLang logs and swallows what a plug-in raises, so nothing here may fail: what is wrong is said when the backend is
made.
"""

from __future__ import annotations

import argparse
import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from vortex.errors import ENGINE_VERSION
from vortex.runtime.sglang.config import VARIABLE, EngineConfig

NAME = "vortex"

SEAMS = {"0.5.16": "seam_0_5_16", "0.5.23": "seam_0_5_23"}
"""Tested version -> the module that knows its interface."""


def activate() -> None:
    """Register the backend ``vortex``, the flag ``--vortex-config`` and the hooks."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    register_attention_backend(NAME)(_make)
    if NAME not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([NAME])
    if _installed() in SEAMS:
        from vortex.runtime.sglang.memory import add_summaries, leave_room

        sizes = "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator.calculate_pool_sizes"
        HookRegistry.register(sizes, leave_room, HookType.BEFORE)
        for target, hook in (
            ("sglang.srt.server_args.ServerArgs.add_cli_args", _add_flag),
            ("sglang.srt.arg_groups.overrides._page_size_default", _page_size),
            ("sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size", add_summaries),
            ("sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new", _tell_decode_rows),
        ):
            HookRegistry.register(target, hook, HookType.AFTER)


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


def _make(runner: Any) -> Any:
    return _seam().Backend(runner)


class _Keep(argparse.Action):
    """Puts the flag's value where every process of the engine looks for it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        os.environ[VARIABLE] = values


def _add_flag(_: None, parser: argparse.ArgumentParser) -> None:
    about = f"configuration of --attention-backend vortex: JSON, or a file of it (default: ${VARIABLE})"
    parser.add_argument("--vortex-config", action=_Keep, default=argparse.SUPPRESS, metavar="JSON", help=about)


def _page_size(default: dict[str, Any], view: Any) -> dict[str, Any] | None:
    """Where no --page-size was given, the configuration's instead of SGLang's 1."""
    if view.page_size is None and view.attention_backend == NAME:
        return {"page_size": EngineConfig.read().page_size}
    return None


def _tell_decode_rows(made: Any, cls: Any, batch: Any, runner: Any, **kwargs: Any) -> None:
    """Before a pass: how many of a mixed batch's last rows decode. SGLang's batch for the model does not say, and on
    the way to the backend it is copied field by field, and may no longer call itself mixed.
    """
    if runner.server_args.attention_backend == NAME:
        mixed = batch.forward_mode.is_mixed()
        runner.attn_backend.expect_decode_rows(len(batch.decoding_reqs or ()) if mixed else 0)

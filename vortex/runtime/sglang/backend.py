"""The attention backend: SGLang's batches as calls of a Decoder.

Prefill is delegated to a dense backend of SGLang's; whatever pages it fills are summarised after it. Summaries are
indexed by physical page and made from the page's own keys when it fills, or when it comes back from the host
(``arrivals``), so that radix hits, evictions, retractions and pages handed to another request need no bookkeeping.
State is indexed by the request's row of ``req_to_token`` and begins anew with each prompt, so that a request that was
retracted has lost it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.runtime_context import get_parallel

from vortex.errors import ENGINE_REFUSED
from vortex.runtime import page_trace, probes
from vortex.runtime.compiled import artifact_for, target_of
from vortex.runtime.library import open_library
from vortex.runtime.parameters import Parameters
from vortex.runtime.sglang import stats
from vortex.runtime.sglang.about import About
from vortex.runtime.sglang.arrivals import Arrivals
from vortex.runtime.sglang.chosen import Chosen, budget_of
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.counts import Counts
from vortex.runtime.sglang.latent import read_latent_by
from vortex.runtime.sglang.memory import new_fields, new_state, parameter_bytes, state_bytes
from vortex.runtime.sglang.metrics import Metrics
from vortex.runtime.sglang.page_trace import PageTrace
from vortex.runtime.sglang.probe import Probe
from vortex.runtime.sglang.refusals import refuse_layers, refuse_model, refuse_prefill, refuse_settings
from vortex.runtime.sglang.scaled_prefill import ScaledPrefill
from vortex.runtime.sglang.scales import scales_of
from vortex.runtime.sglang.shape import model_shape, refuse_table
from vortex.runtime.sglang.step import UNSCALED, Layer, Step
from vortex.runtime.sglang.watch import Watch, WatchedStep

logger = logging.getLogger(__name__)


class VortexBackend(AttentionBackend):  # type: ignore[misc]
    """One object for prefill and decode of one model; made after the pools, before graphs are captured.

    Raises:
        VortexError: VX9002 for what is not served, VX9003 to VX9005 as the configuration and the compiler say,
            VX9010 and VX9015 for probes and page traces that cannot be written.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__()
        config = EngineConfig.read()
        refuse_settings(runner.server_args)
        refuse_model(runner)
        pool = self.token_to_kv_pool = runner.token_to_kv_pool  # SGLang finds both by these names
        self.req_to_token_pool = runner.req_to_token_pool
        latent = runner.use_mla_backend
        by_row, block = bool(config.budget.table), config.block_size
        refuse_table(config.budget, runner.model_config, pool.layer_num, latent)
        own = config.per_request is not None
        shape = model_shape(runner.model_config, runner.kv_cache_dtype, runner.page_size, latent, by_row, block, own)
        target = target_of(runner.device)
        self._library = open_library(artifact_for(config.flow, shape, target, blocks=bool(block)), target)
        manifest = self._library.manifest
        weights = Parameters(manifest.flow, manifest.parameters, config.parameters or None)
        self._weights, self._first_head = weights, shape.first_head
        name = config.prefill_on(runner.device)
        refuse_prefill(name, runner.device, latent=latent, scaled=shape.spec.scaled)
        scaled = self._scaled = shape.spec.scaled and not latent  # SGLang casts latent rows to fp8 as they are
        if latent:
            read_latent_by(name)
        self._prefill = _dense(name, runner)
        self.needs_cpu_seq_lens = self._prefill.needs_cpu_seq_lens
        self._config = config
        refuse_layers(config, range(pool.start_layer, pool.start_layer + pool.layer_num))
        self._layers: dict[int, Layer] = {}
        scales = scales_of(runner.model) if scaled else {}
        table = self.req_to_token_pool.req_to_token
        slots, columns = int(table.shape[0]), -(-int(table.shape[1]) // shape.spec.page_size)
        for number in range(pool.start_layer, pool.start_layer + pool.layer_num):
            k = _as_pages(pool.get_key_buffer(number), shape.spec.page_size)
            v = None if latent else _as_pages(pool.get_value_buffer(number), shape.spec.page_size)
            entries = self._library.manifest.fields
            source = config.pages_of.get(number)
            bare = number in config.dense_layers or source is not None
            fields = None if bare else new_fields(entries, k.shape[0], k.shape[1], k.device)
            state = None if bare else new_state(self._library.manifest.states, slots, k.shape[1], columns, k.device)
            self._layers[number] = Layer(k, v, fields, state, source, scales.get(number, UNSCALED))
        if scaled and name == "torch_native":
            self._prefill = ScaledPrefill(self._prefill, pool, self._layers)
        self.about = About.of(manifest, target, config, len(self._layers), name)
        rank = get_parallel().attn_tp_rank
        counts = Counts(self._library, config, self._layers)
        self.metrics = Metrics.wanted(runner.server_args, self.about, counts, rank)
        self.probe = self.trace = None
        if probed := probes.Wanted.read():
            self.probe = Probe(probed, self.about, rank, shape.first_head)
        if traced := page_trace.Wanted.read():
            heads = next(iter(self._layers.values())).k.shape[1]
            self.trace = PageTrace(traced, self.about, self._library, heads, rank, shape.first_head)
        self.watches: tuple[Watch, ...] = tuple(w for w in (self.probe, self.trace) if w is not None)
        self.chosen = None
        if config.per_request is not None:
            self.chosen = Chosen(config.per_request, config.budget, slots, table.device)
        self._eager = self._captured = self._step = self._new_step(1, self.watches)
        if getattr(runner.server_args, "enable_hierarchical_cache", False):
            # found by the hooks on what fills this pool
            pool.vortex_arrivals = Arrivals(
                self._library, config.budget, self._layers, columns, weights, shape.first_head
            )
        self._expected = self._decode_rows = 0  # of the next pass and of this one, if it has prompts too
        self._stats = stats.Stats.wanted(self._library, config, self._layers)
        if states := self._library.manifest.states:
            scored = len(self._layers) - len(config.dense_layers)
            taken = state_bytes(states, shape.kv_heads, slots, columns, scored) / 2**20
            logger.info("vortex: %d slots of state of up to %d pages take %.1f MiB", slots, columns, taken)
        if manifest.parameters:
            taken = parameter_bytes(manifest.parameters, shape.kv_heads, len(self._layers)) / 2**20
            logger.info("vortex: parameters of %d layers take %.1f MiB", len(self._layers), taken)
        logger.info("vortex: %s", self.about.line())
        if config.per_request is not None:
            logger.info("vortex: a request may choose up to %s", config.per_request)

    def _new_step(self, rows: int, watches: tuple[Watch, ...] = ()) -> Step:
        """For up to ``rows`` requests at first; with ``watches`` one that is looked at where they say so."""
        config, slots = self._config, self.req_to_token_pool.req_to_token
        make = partial(WatchedStep, watches) if watches else Step
        return make(
            self.trace.library if watches and self.trace is not None else self._library,
            config.budget,
            self._layers,
            slots,
            rows,
            self._weights,
            self._first_head,
            config.every,
            deterministic=config.deterministic,
            chosen=self.chosen,
        )

    # --- what a pass begins with ----------------------------------------------------------------------------

    @staticmethod
    def tokens_of(request: Any) -> int:
        """Tokens of a request of the scheduler's that is about to decode, the new one included; versions of SGLang keep
        the number in places of their own.
        """
        raise NotImplementedError

    def learn_choices(self, rows: torch.Tensor, custom: Sequence[object]) -> None:
        """A pass over prompts is about to begin, of requests in these rows of ``req_to_token``, which chose this."""
        if self.chosen is not None:
            self.chosen.write(rows, custom)

    def expect_decode_rows(self, rows: int) -> None:
        """The next pass decodes its last ``rows`` requests beside prompts; 0 unless a batch is mixed."""
        self._expected = rows

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """A pass that no graph replays, or one whose attention graphs leave out."""
        step = self._step = self._eager
        mode = forward_batch.forward_mode
        self._decode_rows, self._expected = self._expected, 0
        if mode.is_idle():
            return
        step.begin(forward_batch.req_pool_indices, forward_batch.seq_lens)
        if mode.is_decode():
            step.plan_decode()
            self._note(forward_batch.seq_lens, step.budgets)
            return
        self._prefill.init_forward_metadata(forward_batch)
        step.plan_fill(forward_batch.extend_seq_lens, self._decode_rows)
        for decoding in (self._eager, self._captured):
            decoding.forget()
        if rows := self._decode_rows:
            # the scheduler puts the decoding requests last, each with its one new token
            step.plan_decode(rows)
            self._note(forward_batch.seq_lens[-rows:], step.budgets[-rows:])

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Before a decode graph is captured or replayed: the snapshot, which is the last look at shared memory."""
        step = self._step = self._captured
        live = 0 if in_capture else forward_batch.batch_size - (getattr(forward_batch, "num_padding", 0) or 0)
        step.begin(forward_batch.req_pool_indices, forward_batch.seq_lens, live)
        if in_capture:
            step.plan_decode()  # allocates what this batch size needs; the recorded one below does not
        else:
            self._note(forward_batch.seq_lens[:live], step.budgets[:live])

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """Recorded: the lengths of a replay are known to the device alone."""
        self._captured.plan_decode()

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Static tables and decoders for graphs of up to ``max_bs`` requests."""
        self._captured = self._new_step(max_bs)
        self._captured.reserve()

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Length of a padded row: one token on the dummy page 0, which fills nothing."""
        return 1

    # --- each layer -----------------------------------------------------------------------------------------

    def forward_decode(
        self, q: torch.Tensor, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **kwargs: Any
    ) -> torch.Tensor:
        """One token of each request; ``save_kv_cache`` False where RoPE has stored K and V already."""
        _refuse_extras(kwargs)
        if save_kv_cache and k is not None:
            scales = self._layers[layer.layer_id].scales if self._scaled else ()
            self.token_to_kv_pool.set_kv_buffer(layer, forward_batch.out_cache_loc, k, v, *scales)
        # on a GPU a slice of the fused projection, its rows further apart than they are long
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim).contiguous()
        out = q.new_empty(*q.shape[:2], layer.v_head_dim)
        self._step.attend(layer.layer_id, q, out, layer.scaling, forward_batch.out_cache_loc)
        return out.flatten(1)

    def forward_extend(
        self, q: torch.Tensor, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **kwargs: Any
    ) -> torch.Tensor:
        """Prompt tokens, and in a mixed batch the decoding requests' tokens after them."""
        _refuse_extras(kwargs)
        out: torch.Tensor = self._prefill.forward_extend(q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache)
        step, number = self._step, layer.layer_id
        step.fill(number, forward_batch.out_cache_loc)
        if rows := self._decode_rows:
            heads = layer.tp_q_head_num
            last = out.view(-1, heads, layer.v_head_dim)[-rows:]
            step.attend(number, q.reshape(-1, heads, layer.qk_head_dim)[-rows:].contiguous(), last, layer.scaling)
        return out

    def support_triton(self) -> bool:
        """Whether SGLang's own index kernels may run in Triton."""
        return bool(self._prefill.support_triton())

    def _note(self, lengths: torch.Tensor, budgets: torch.Tensor) -> None:
        if self._stats is not None:
            own = None if self.chosen is None else [budget_of(tuple(row)) for row in budgets.tolist()]
            self._stats.step(lengths.tolist(), own)
        for watch in self.watches:
            watch.count()


def _dense(name: str, runner: Any) -> Any:
    """SGLang's dense backend of that name; VX9002 where it cannot be made for this model or on this machine."""
    try:
        return ATTENTION_BACKENDS[name](runner)
    except Exception as error:  # whatever it says where a package or a device is missing
        why = f"SGLang cannot start it: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}"
        hint = "name another 'prefill_backend' in VORTEX_CONFIG"
        raise ENGINE_REFUSED.at(what=f"prefill_backend '{name}'", why=why, hint=hint) from error


def _as_pages(buffer: torch.Tensor, page: int) -> torch.Tensor:
    """SGLang's ``[slots, Hkv, D]`` as pages ``[P, Hkv, page, D]``, the same memory."""
    return buffer.view(-1, page, *buffer.shape[1:]).transpose(1, 2)


def _refuse_extras(kwargs: dict[str, Any]) -> None:
    for name, value in kwargs.items():
        if value is not None:
            why = "attention would have to take it into account and does not"
            raise ENGINE_REFUSED.at(what=f"a model that passes '{name}'", why=why, hint="use a dense backend for it")

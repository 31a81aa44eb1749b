"""A plug-in of SGLang's that writes down what its scheduler did, one JSON object a line, to the file WITNESS names.

* ``{"rid", "said", "times", "hit", "until"}``: a prompt, or a chunk of one, is read. ``said`` tokens were said before,
  ``times`` it was retracted, ``hit`` tokens are in the pool already, after it there are ``until``.
* ``{"mixed", "beside"}``: that many requests decode beside so many prompts in one pass.
* ``{"evicted"}``: tokens that the radix cache gave up.
* ``{"loaded"}``: tokens that come back from the host (HiCache).
* ``{"size", "free", "cached", "locked", "rows", "of"}``: before a flush, the pool's tokens, those nobody holds, those
  the cache holds for nobody, those it holds for a request, and free rows of all rows for requests.
"""

from __future__ import annotations

import json
import os
from typing import Any


def watch() -> None:
    from sglang.srt.managers.cache_controller import HiCacheController
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler

    path = os.environ["WITNESS"]

    def note(**what: Any) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    load = HiCacheController.start_loading
    extend, mix, flush = ScheduleBatch.prepare_for_extend, ScheduleBatch.mix_with_running, Scheduler.flush_cache

    def prepare_for_extend(self: Any) -> None:
        extend(self)
        for r, hit, new in zip(self.reqs, self.prefix_lens, self.extend_lens, strict=True):
            note(rid=r.rid, said=len(r.output_ids), times=r.retraction_count, hit=hit, until=hit + new)
        tree = self.tree_cache
        if not hasattr(tree, "watched"):
            name = "_evict" if hasattr(tree, "_evict") else "evict"  # what all ways of evicting end in
            tree.watched, evict = True, getattr(tree, name)

            def evict_and_say(*args: Any, **kwargs: Any) -> Any:
                done = evict(*args, **kwargs)
                note(evicted=done.num_tokens_evicted)
                return done

            setattr(tree, name, evict_and_say)

    def mix_with_running(self: Any, running: Any) -> None:
        beside = len(self.reqs)
        mix(self, running)
        note(mixed=len(running.reqs), beside=beside)

    def flush_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        pool, rows, tree = self.token_to_kv_pool_allocator, self.req_to_token_pool, self.tree_cache
        held = {"cached": tree.evictable_size(), "locked": tree.protected_size()}
        note(size=pool.size, free=pool.available_size(), **held, rows=rows.available_size(), of=rows.size)
        return flush(self, *args, **kwargs)

    def start_loading(self: Any) -> Any:
        if self.load_queue:
            note(loaded=sum(len(operation.device_indices) for operation in self.load_queue))
        return load(self)

    HiCacheController.start_loading = start_loading  # type: ignore[method-assign]
    ScheduleBatch.prepare_for_extend = prepare_for_extend  # type: ignore[method-assign]
    ScheduleBatch.mix_with_running = mix_with_running  # type: ignore[method-assign]
    Scheduler.flush_cache = flush_cache  # type: ignore[method-assign]

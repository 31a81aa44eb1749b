"""What SGLang's ``/metrics`` shows of the backend, beside SGLang's own, with ``--enable-metrics``.

SGLang's processes share what they count by files, as prometheus_client does in its multiprocess mode; so metrics of the
process that decodes are there without more. Lengths come from the scheduler's requests: no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vortex.budget import Budget
from vortex.runtime.sglang.about import About
from vortex.runtime.sglang.counts import Counts


class Metrics:
    """Of one process; the first tensor-parallel rank alone has some, or all do with
    ``--enable-metrics-for-all-schedulers``, as SGLang has it.

    vortex:serves             1, what is served as its labels
    vortex:pages_read_total   pages that decoding read, a KV head's, over requests and all layers
    vortex:pages_total        pages that dense attention would have read
    vortex:read_share         of the last decode step: pages read of pages, over all layers
    vortex:bytes_saved_total  bytes of K and V that the rank did not read, less those of summaries that it read
    """

    @classmethod
    def wanted(cls, args: Any, about: About, counts: Counts, rank: int) -> Metrics | None:
        """None unless ``args``, SGLang's ServerArgs, ask for metrics of this rank."""
        if not getattr(args, "enable_metrics", False):
            return None
        if rank and not getattr(args, "enable_metrics_for_all_schedulers", False):
            return None
        # a name that was not given is the path, which 0.5.23 keeps apart from the arguments as they were given
        name = args.served_model_name or args.model_path
        return cls(about, counts, {"model_name": str(name), "tp_rank": str(rank)})

    def __init__(self, about: About, counts: Counts, labels: dict[str, str]) -> None:
        # imported late: SGLang names the folder that its processes share in the environment first
        from prometheus_client import Counter, Gauge

        self._counts, self._layers = counts, counts.sparse + counts.dense
        served = {
            "flow": about.flow,
            "budget_pages": about.pages,
            "budget_tokens": about.tokens,
            "page_size": about.page_size,
            "dense_layers": ",".join(map(str, about.dense_layers)),
        }
        known = {**labels, **{name: str(x) for name, x in served.items()}}
        one = Gauge("vortex:serves", "What attention serves.", list(known), multiprocess_mode="mostrecent")
        one.labels(**known).set(1)

        def counter(name: str, what: str) -> Any:
            return Counter(f"vortex:{name}", what, list(labels)).labels(**labels)

        self._read = counter("pages_read", "Pages of a KV head that decoding read, over requests and layers.")
        self._pages = counter("pages", "Pages of a KV head that dense decoding would have read.")
        self._saved = counter("bytes_saved", "Bytes that dense decoding would have read more, on this rank.")
        share = Gauge(
            "vortex:read_share",
            "Pages read of all pages over all layers, in the last decode step.",
            list(labels),
            multiprocess_mode="mostrecent",
        )
        self._share = share.labels(**labels)

    def step(self, lengths: Sequence[int], own: Sequence[Budget | None] | None = None) -> None:
        """Count one decode step over requests of these lengths, the step's tokens included, some of which have budgets
        of their ``own``.
        """
        saved = self._counts.bytes_saved
        pages, kept = self._counts.step(lengths, own)
        read = kept * self._counts.sparse + pages * self._counts.dense
        self._read.inc(read)
        self._pages.inc(pages * self._layers)
        # summaries of requests that are hardly longer than the budget may take more than was saved; counters only grow
        self._saved.inc(max(0, self._counts.bytes_saved - saved))
        self._share.set(read / (pages * self._layers) if pages else 1.0)

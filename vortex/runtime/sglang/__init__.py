"""SGLang's attention backend ``vortex``: decoding through a compiled flow in an engine that nobody patched.
SGLang's plugin loader imports it.

* ``plugin``: the entry point; registers the backend, the flag and the hooks
* ``config``: what the user wants, from VORTEX_CONFIG
* ``choice``: what a request may choose for itself; ``chosen``: its budget, where the device finds it
* ``refusals``: what is not served, each with its reason
* ``start``: what is refused before a worker runs; ``last_word``: what a worker ends with, said last
* ``shape``: the model's shape; the artifact for it comes from ``vortex.runtime.compiled``
* ``memory``: what summaries cost, in SGLang's own accounting
* ``backend``: SGLang's batch, as calls of a Decoder; ``step``: the tables of one batch
* ``arrivals``: summaries of pages that HiCache brings back from the host
* ``seam_*``: where the versions of SGLang differ
* ``about``: what is served, as the log, ``get_server_info`` and metrics say it
* ``counts``: how many pages were read; ``stats``: VORTEX_STATS; ``metrics``: SGLang's ``/metrics``
* ``watch``: decode steps that are looked at; ``probe``: VORTEX_PROBE, what mass of attention was read;
  ``page_trace``: VORTEX_TRACE, on which pages
"""

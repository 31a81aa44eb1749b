"""SGLang's attention backend ``vortex``: decoding through a compiled flow in an engine that nobody patched.
SGLang's plugin loader imports it.

* ``plugin``: the entry point; registers the backend, the flag and three hooks
* ``config``: what the user wants, from VORTEX_CONFIG
* ``refusals``: what is not served, each with its reason
* ``shape``: the model's shape; the artifact for it comes from ``vortex.runtime.compiled``
* ``memory``: what summaries cost, in SGLang's own accounting
* ``backend``: SGLang's batch, as calls of a Decoder; ``step``: the tables of one batch
* ``seam_*``: where the versions of SGLang differ
* ``stats``: VORTEX_STATS
"""

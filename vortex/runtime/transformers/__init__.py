"""transformers' attention ``vortex``: ``generate()`` decodes through a flow, prompts are read by sdpa. ``vortex.hf``
imports it.

* ``settings``: what the user wants, from ``register`` and the model's config
* ``refusals``: what is not served, each with its reason
* ``masks``: where each request begins behind its padding, and masks that are more than that
* ``attention``: the function that transformers calls in each layer, and what it remembers of a cache
* ``pages``: what is kept of a cache's tokens; ``compiled`` by a Decoder's pools, ``eager`` for the oracle
* ``report``: which layers a model's flow served
"""

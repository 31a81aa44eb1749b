def cudnn_batch_prefill_with_kv_cache(*a, **k):
    """What 0.5.16 imports for models that see pictures."""
    raise NotImplementedError("flashinfer stub: no model of the benches sees pictures")

def _no(*a, **k):
    raise NotImplementedError("flashinfer stub: use sampling_backend='pytorch'")


min_p_sampling_from_probs = top_k_top_p_sampling_from_probs = _no

"""What our kernels are measured against: Triton versions of the same steps, FlashInfer, and the copy ceiling."""

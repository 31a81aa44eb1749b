"""Kernels for NVIDIA GPUs: one TensorIR template per kernel kind, around the shared scalar emitters."""

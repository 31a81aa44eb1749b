"""The machines that kernels are compiled for: targets, GPUs and this CPU; any package may import it."""

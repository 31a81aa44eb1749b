"""The template of select for NVIDIA GPUs and its parts; nothing but codegen imports them."""

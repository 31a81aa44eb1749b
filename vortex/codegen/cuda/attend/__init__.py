"""The templates of attend for NVIDIA GPUs; nothing but codegen imports them."""

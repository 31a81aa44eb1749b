"""Templates for NVIDIA GPUs and what they share; codegen finds them by name, and nothing else imports them."""

"""The names of the package vortex_torch as vortex's frontend understands them; its flow files import them."""

"""The names of the package vortex_torch, as vortex's frontend understands them; flow files import them from there."""

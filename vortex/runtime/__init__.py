"""Decoding over tensors of the caller's, from an artifact alone: check, tune and cli import it."""

if not __name__.startswith("vortex."):
    raise ImportError("import vortex.runtime: the folder runtime/ at the top is a link for readers, not a package")

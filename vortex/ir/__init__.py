"""The two intermediate representations, their text, checks and interpreters; every later stage may import them."""

if not __name__.startswith("vortex."):
    raise ImportError("import vortex.ir: the folder ir/ at the top is a link for readers, not a package")

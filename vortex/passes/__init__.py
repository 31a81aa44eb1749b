"""One pass a file, and the pipeline that runs them: the driver, compilation, cli and tune import them."""

if not __name__.startswith("vortex."):
    raise ImportError("import vortex.passes: the folder passes/ at the top is a link for readers, not a package")

"""TensorIR from page IR, through one template a kernel kind: driver, compilation, cli and tune import it."""

if not __name__.startswith("vortex."):
    raise ImportError("import vortex.codegen: the folder codegen/ at the top is a link for readers, not a package")

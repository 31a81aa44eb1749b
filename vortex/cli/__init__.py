"""The ``vortex`` command, a subcommand a file, each a thin front of the library; only ``__main__`` imports it."""

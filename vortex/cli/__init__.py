"""The ``vortex`` command: one file a subcommand, each a thin front of the library."""

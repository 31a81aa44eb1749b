"""Which configuration of a kernel is fastest where: spaces, measurements and their stores; only cli imports it."""

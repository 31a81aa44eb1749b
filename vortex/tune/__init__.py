"""Which configuration of a kernel is fastest where: spaces, records of measurements, the stores that hold them."""

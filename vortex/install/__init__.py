"""What is installed and cached on this machine: cache root, toolchain, versions; any package may import it."""

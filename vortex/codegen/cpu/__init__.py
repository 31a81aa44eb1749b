"""Templates for CPUs: plain loops for LLVM, rows over threads; codegen finds them by name and nothing imports them."""

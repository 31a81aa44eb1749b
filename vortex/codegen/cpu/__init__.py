"""Templates for CPUs: plain loops for LLVM, rows over threads. One file per kernel kind."""

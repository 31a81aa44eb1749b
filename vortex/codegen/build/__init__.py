"""From TensorIR text to a library: LLVM, nvcc and the linker; codegen alone, the driver and tune import it."""

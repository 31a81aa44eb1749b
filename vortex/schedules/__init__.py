"""What each template leaves open and what is chosen for it, without TVM; for passes, codegen, tune and cli."""

"""What each template leaves open and what is chosen for it, without TVM: passes, codegen and tune import it."""

"""The dialects of the IR, an op a class: whatever may import ir may import them."""

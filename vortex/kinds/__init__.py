"""What a kernel kind is, declared once; every stage may import it."""

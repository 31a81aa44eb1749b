"""What a kernel kind is, declared once: imports errors alone, and every stage may import it."""

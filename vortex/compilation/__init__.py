"""What one compilation leaves behind: recorder, dumps, resuming, assembly; only driver and cli import it."""

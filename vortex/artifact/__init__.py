"""Artifacts on disk: manifest, folder, kernel texts; imports errors, spec and kinds; later stages may import it."""

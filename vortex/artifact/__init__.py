"""Artifacts on disk: manifest, folder, kernel texts; what comes after compilation may import it, and the driver."""

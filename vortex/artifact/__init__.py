"""Artifacts on disk: manifest, folder, kernel texts; driver, compilation, runtime, tune and cli import it."""

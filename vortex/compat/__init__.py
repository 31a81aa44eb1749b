"""Flows written for other packages, read as they are; the loader of flow files imports them by name."""

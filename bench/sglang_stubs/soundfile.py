"""Stands in for soundfile, with which SGLang reads audio."""

"""``vortex report``: a compilation as one HTML file that a person looks into; only cli imports it."""

"""``vortex eval``: how many of a real model's answers a flow keeps, beside dense, oracle, random and recent pages;
``vortex.cli`` imports it.
"""

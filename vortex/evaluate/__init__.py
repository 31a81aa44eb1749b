"""``vortex eval``: how many of a real model's answers a flow keeps, beside dense, oracle, random and recent pages;
``vortex advise``: which configuration of flows, budgets and dense layers a user's own prompts need. ``vortex.cli``
imports it.
"""

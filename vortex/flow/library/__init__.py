"""Flows that come with vortex, one a file: ``vortex.find_flow(name)`` loads the one it needs, nothing imports them."""

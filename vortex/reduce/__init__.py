"""Shrinking IR while a test still holds of it: what may go, in which order it is tried; only cli imports it."""

"""Chaos: a search that is killed, frozen and cut off on purpose, and then checked for what was lost."""

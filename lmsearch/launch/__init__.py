"""Launching: starts the workers of a search, restarts those that die, and watches."""

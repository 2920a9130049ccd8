"""Exports, each read back by the other program's own reader."""

"""Corpora: text to token arrays in a memory-mapped cache, words to indices."""

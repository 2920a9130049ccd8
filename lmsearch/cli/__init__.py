"""The commands: each parses words, calls one function, draws and exits. Heavy imports stand inside functions."""

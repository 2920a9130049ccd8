"""What a person sees in a terminal: lines, the live view of a search, progress, and what is logged."""

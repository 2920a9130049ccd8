"""What a search found: files and words made from the store, never from anything else."""

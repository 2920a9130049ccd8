"""The search: samplers and pruners, trials, and the workers that run them."""

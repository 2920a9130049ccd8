"""The search: samplers and pruners, trials, workers and the parent that starts them."""

"""A trained model in use: its folder, perplexities of texts, predictions, generated text, the cache,
dynamic evaluation."""

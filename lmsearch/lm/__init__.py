"""The LSTM language model and its training, in PyTorch; it knows nothing of searching."""

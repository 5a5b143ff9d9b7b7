"""`twinvit compare`: two models on the same inputs, layer by layer."""

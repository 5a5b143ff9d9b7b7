"""`twinvit train` and `evaluate`, and the same from Python."""

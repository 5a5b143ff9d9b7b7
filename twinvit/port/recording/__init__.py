"""Recordings: a model's program in a folder, to be compared where the model itself is not."""

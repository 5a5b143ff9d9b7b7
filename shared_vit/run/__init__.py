"""A training run: its settings, loop, state, checkpoints and folder."""

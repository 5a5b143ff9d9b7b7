"""Checkpoints as other programs write them, made when a test asks for them, and what the twins make
of each. A module a writer; `rows.py` has the list."""

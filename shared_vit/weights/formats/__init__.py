"""Formats of weight files: whose names and layouts they use."""

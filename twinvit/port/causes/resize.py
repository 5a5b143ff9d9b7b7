"""Causes: to come."""

"""The version of the project, stated here only."""

__version__ = "0.2.0"

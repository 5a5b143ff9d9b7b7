"""The data sets a run can name."""

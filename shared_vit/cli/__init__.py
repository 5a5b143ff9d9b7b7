"""What every command's line is read by, and the look of its help."""

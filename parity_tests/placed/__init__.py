"""Models with one mistake each, on a line of its own that ends with a comment of its name."""

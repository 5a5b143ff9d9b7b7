"""Both programs as they run: in their own types, against themselves in float64."""

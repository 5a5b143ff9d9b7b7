"""Both programs as they run: in their own dtypes, against themselves in float64."""

"""Pages that need nothing else: one HTML file, no network, pictures as inline SVG."""

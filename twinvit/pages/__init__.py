"""Pages that need nothing else: one HTML file, no network, images as inline SVG."""

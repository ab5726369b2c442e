"""Reports of a benchmark: results as JSON, the console, and one HTML page."""

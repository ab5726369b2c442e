"""The report of a prepared data set: counts, tokens, samples, and one HTML page."""

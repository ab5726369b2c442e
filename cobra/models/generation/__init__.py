"""Generation on a constant-size state: decoding, sampling, search and constrained stages."""

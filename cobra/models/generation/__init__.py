"""Generation on a constant-size state: decoding, sampling, search, and answers in stages."""

"""Tasks of the benchmark: captions and conclusions."""

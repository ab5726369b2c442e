"""Vision towers and language models."""

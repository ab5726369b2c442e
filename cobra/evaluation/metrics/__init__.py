"""Metrics of captions and conclusions, and the significance of differences."""

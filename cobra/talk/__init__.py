"""Talking to a model about images, in a terminal and on a page."""

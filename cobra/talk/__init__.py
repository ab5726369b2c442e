"""Conversations with a model about images, in a terminal and on a page."""

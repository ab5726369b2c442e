"""Examination of data before a run: every row and image, and what training would do with them."""

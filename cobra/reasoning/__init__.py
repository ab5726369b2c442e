"""What answers in stages say: their conclusions, and when two of these are the same."""

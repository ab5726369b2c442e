"""Caption sets, their images, predictions of other systems, and held-out rows."""

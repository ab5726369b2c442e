"""Exports: a trained model as a folder that other programs read, and the proof that it gives the same answers there."""

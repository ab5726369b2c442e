"""Rows of LLaVA-CoT-100k: read, check, select and split them."""

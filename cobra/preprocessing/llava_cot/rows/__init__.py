"""Rows of LLaVA-CoT-100k: read, checked, selected and split."""

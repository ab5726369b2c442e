"""The image archive of LLaVA-CoT-100k: fetched, checked, and unpacked part by part."""

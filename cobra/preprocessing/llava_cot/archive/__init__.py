"""The image archive of LLaVA-CoT-100k: fetch, check and unpack its parts."""

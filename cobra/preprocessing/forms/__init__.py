"""Read rows in LLaVA's format out of the other forms in which people bring their data."""

"""Rows in Parquet files and `datasets` folders, with the images inside: read where they lie."""

"""Benchmark of models and results files: data, responses, metrics, report and tasks."""

"""Continuous batching: answers to requests that come and go are written together, a token of each at a time."""

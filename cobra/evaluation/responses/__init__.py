"""Responses of models: the protocol, batched generation, and the cache of finished answers."""

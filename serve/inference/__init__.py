"""Sampler replicas: an engine in a thread of its own, and the sampler that uses it."""

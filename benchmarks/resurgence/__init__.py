"""Concept resurgence in one dimension, where the mass of a concept is known: ``python -m benchmarks.resurgence``."""

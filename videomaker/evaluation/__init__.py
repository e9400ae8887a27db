"""Measures and protocols: how good a model is."""

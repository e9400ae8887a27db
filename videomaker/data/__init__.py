"""Clips on disk, from manifest to highlighting: training, evaluation and serving use the same code."""

"""Sampled codes become pictures."""

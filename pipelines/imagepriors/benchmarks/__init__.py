"""Benchmarks: every figure is a ratio against a named rival, measured in one run on one machine."""

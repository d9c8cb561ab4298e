"""Checks of a GPU: whether it computes what the CPU computes, and how fast."""

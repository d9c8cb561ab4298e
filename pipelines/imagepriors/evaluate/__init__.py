"""Figures that say how good a tokenizer or a prior is."""

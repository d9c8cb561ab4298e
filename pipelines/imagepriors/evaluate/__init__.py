"""Metrics of tokenizers and priors."""

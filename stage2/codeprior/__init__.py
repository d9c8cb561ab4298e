"""Autoregressive priors over image codes, trained from token shards alone (stage 2)."""

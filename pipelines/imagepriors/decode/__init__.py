"""Decode codes to pictures: rows of shards, and samples of a prior."""

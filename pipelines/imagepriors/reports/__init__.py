"""Pages and contact sheets to look at: a run, a dataset of shards, a dataset of images."""

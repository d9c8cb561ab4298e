"""Token shards: the format, the encode step and the Ray job that writes whole datasets."""

"""HTML pages and contact sheets about runs, shards and image datasets."""

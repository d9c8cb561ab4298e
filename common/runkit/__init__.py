"""What every run needs and no stage owns: errors, names, JSON, whole-or-absent files, folders held by one command."""

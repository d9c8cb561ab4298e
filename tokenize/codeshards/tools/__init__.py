"""Tools for finished datasets: inspect, verify, convert, merge, encode again."""

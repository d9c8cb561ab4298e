"""Tools for finished datasets: inspect, verify, convert, merge, compare with the pixels."""

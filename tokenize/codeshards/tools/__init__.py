"""Tools for finished datasets: inspect, verify, convert, merge, extend, compare with the pixels."""

"""Stores give the same guarantees in a local folder and on a real S3 server."""

"""A small tokenize job that the tests share."""

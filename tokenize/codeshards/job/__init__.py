"""The Ray job that encodes a dataset: encode step, scheduler, resume, progress."""

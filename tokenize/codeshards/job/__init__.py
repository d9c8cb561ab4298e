"""The Ray job that encodes a dataset: encode step, scheduler, Ray session, resume, progress."""

"""Predict depth maps and masks of a dataset's images with pretrained networks."""

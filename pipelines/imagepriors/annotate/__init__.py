"""Depth maps and masks for a dataset's images, from pretrained networks."""

"""The default data: procedural scenes with exact masks, depth, keypoints and classes."""

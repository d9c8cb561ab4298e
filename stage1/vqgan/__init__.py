"""Everything about pixels: datasets, the VQGAN, its losses, training and metrics (stage 1)."""

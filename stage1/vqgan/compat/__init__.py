"""Import and export of tokenizers of other projects: CompVis checkpoints, diffusers' VQModel."""

"""Tokenizers of other projects: CompVis checkpoints, diffusers' VQModel."""

"""Names of what can be imported. It imports no torch."""

from typing import Literal

Kind = Literal["auto", "compvis", "llamagen", "maskgit", "ibq", "magvit2", "cosmos"]
"""Projects that have released tokenizers; auto: recognised by the names of the tensors."""
Part = Literal["first_stage", "cond_stage"]
"""Tokenizers in the checkpoint of a CompVis transformer: that of the images, and that of the condition."""

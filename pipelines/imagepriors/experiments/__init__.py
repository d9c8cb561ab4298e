"""The experiments of the paper, and those of priors of any order."""

EXPERIMENTS = {
    "orders": "five priors that differ only in the order (Fig. 2)",
    "efficiency": "codes compared with pixels (section 2)",
    "scales": "multiscale priors with the first scales fixed (Fig. 3, 7)",
    "conditional": "classes, masks, depth and poses to pictures (section 4)",
    "any-order": "one prior of any order beside five of one order, and many codes per step",
    "inpainting": "completion of pictures of which any part is known",
    "evaluation": "likelihood, Fréchet distance, precision, recall",
}

"""The experiments of the paper."""

EXPERIMENTS = {
    "orders": "five priors that differ only in the order (Fig. 2)",
    "efficiency": "codes compared with pixels (section 2)",
    "scales": "multiscale priors with the first scales fixed (Fig. 3, 7)",
    "conditional": "classes, masks, depth and poses to pictures (section 4)",
    "completion": "completion of half a picture, in each order",
    "evaluation": "likelihood, Fréchet distance, precision, recall",
}

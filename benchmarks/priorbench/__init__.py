"""Benchmarks against other packages, and the checks of a GPU."""

SUITES = {
    "decode": "reading photos, against torchvision's ImageFolder",
    "train-vqgan": "VQGAN training steps, encoding and decoding, against taming-transformers and diffusers",
    "tokenize": "the tokenize job, against the encoder alone and LlamaGen's loop with the same network",
    "shards": "cost of five orders and of tars",
    "loader": "reading codes, against webdataset, litdata, mosaicml-streaming, datasets and numpy",
    "train-prior": "a training step of the prior, against nanoGPT, transformers and taming",
    "sample": "sampling codes, against taming and transformers",
    "scaling": "growth of the job with workers and shards, the loader with rows, training with sequence length",
}

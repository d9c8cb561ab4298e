"""From a folder of photos to samples of a prior, in ten lines; paste them into a notebook.

Replace data/photos with your folder. Without `steps` the settings follow from the size of the pictures.
"""

import imagepriors as ip

photos = ip.open_dataset("data/photos")
tokenizer = ip.train_tokenizer(photos, steps=2000)
quality = ip.evaluate_tokenizer(tokenizer, photos, frechet="none")["figures"]
codes = tokenizer.encode(photos.images("val", 8))
reconstructions = tokenizer.decode(codes)
shards = ip.tokenize(photos, tokenizer)
prior = ip.train_prior(shards, order="zcurve", steps=2000)
samples = prior.sample(16, temperature=0.9)
samples.grid().save("samples.png")

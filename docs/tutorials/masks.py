import numpy as np
from PIL import Image

import imagepriors as ip

shards = ip.open_shards("runs/ade/shards")
(rows,) = shards.batches("train", ["cond_segmentation"])
prior = ip.load_prior("runs/ade/prior-row_major-segmentation")
masks = ip.load_tokenizer("runs/ade/shards/tokenizer-segmentation")
lines = []
for codes in rows["cond_segmentation"][:8:2]:  # every second row is a mirror
    samples = prior.sample(4, condition=codes[None].repeat(4, 0))
    lines.append(np.hstack([masks.decode(codes.reshape(8, 8)), *samples]))
Image.fromarray(np.vstack(lines)).resize((640, 512), 0).save("ade20k.png")

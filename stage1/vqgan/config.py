"""Configuration of stage 1: the model, the loss, training. It imports no torch."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from runkit.codes import MAX_CODEBOOK_SIZE
from runkit.configs import check_fields, require
from runkit.devices import Device, Precision
from runkit.trackers import TrackerName
from vqgan.errors import InputError

Modality = Literal["rgb", "segmentation", "depth", "pose"]
Geometry = Literal["crop", "pad", "stretch"]
Network = Literal["vqgan", "maskgit", "magvit2"]
Quantizer = Literal["vq", "l2", "simvq", "ibq", "fsq", "lfq", "bsq", "gumbel", "palette"]
Discriminator = Literal["patch", "stylegan", "dino"]
DiscLoss = Literal["hinge", "vanilla"]
Perceptual = Literal["none", "efficientnet-lite0", "lpips-vgg", "lpips-alex", "lpips-squeeze"]
ScalesFrom = Literal["quantised", "continuous"]
"""What is pooled for the codes of coarser scales: code vectors, or the encoder's output before quantisation."""
_GEOMETRIES: dict[str, Geometry] = {"deepfashion": "pad"}  # its tall photos show people from head to foot


def dataset_geometry(dataset: str) -> Geometry:
    """Return the default geometry of a dataset.

    Args:
        dataset: Name of its reader.
    """
    return _GEOMETRIES.get(dataset, "crop")


_require = partial(require, error=InputError)


_MOST = {"num_res_blocks": 64, "ch": 4096, "z_channels": 65_536, "embed_dim": 65_536, "resolution": 65_536}
"""Upper bounds, far above real models, so that a typing error is not followed by a huge allocation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The VQGAN's architecture (Esser et al. 2021; the defaults are its f16 model with 1024 codes)."""

    kind: str = ""
    """Tokenizer of another package: an entry point of the group imagepriors.tokenizers, or package.module:function.
    Empty: the networks of this package. The fields `ch` to `levels` are only for these."""
    plugin_grid: tuple[int, ...] = ()
    """Rows and columns of codes of a tokenizer of another package."""
    plugin_fingerprint: str = ""
    """Fingerprint of a tokenizer of another package."""
    modality: Modality = "rgb"
    """What is encoded: RGB images, one-hot segmentation maps, one-channel depth, or rendered poses."""
    n_labels: int = 0
    """Labels of a segmentation map, label 0 (unlabelled) included; 0 for every other modality."""
    network: Network = "vqgan"
    """Encoder and decoder. vqgan: those of CompVis, LlamaGen, IBQ and, with a patch, Cosmos. maskgit, magvit2: those of
    MaskGIT and of Open-MAGVIT2, without attention; z_channels and embed_dim are equal."""
    resolution: int = 256
    """Side of the square picture in pixels."""
    geometry: Geometry = "crop"
    """How a picture and its conditions become square. crop: the centre square is kept. pad: the shorter side is filled
    (white, label 0, the lowest depth). stretch: each side is resized."""
    ch: int = 128
    """Channels at full resolution."""
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channel multiplier of each level; every level after the first halves the resolution, unless `halvings` is set."""
    patch: int = 1
    """Side of the squares of pixels that a Haar wavelet transform makes the channels of one cell before the encoder;
    the decoder ends with its inverse. A power of two (Cosmos: 4) in the network vqgan; 1: none."""
    halvings: int = 0
    """Levels, from the first, after which the encoder of the network vqgan halves the resolution, and as many, from the
    last, at which its decoder doubles it; 0: one less than there are levels."""
    num_res_blocks: int = 2
    """Residual blocks per encoder level (the decoder has one more)."""
    attn_resolutions: tuple[int, ...] = (16,)
    """Sides of feature maps, in cells, that have self-attention in the network vqgan; the others have none."""
    norm_groups: int = 0
    """Groups of each GroupNorm; 0: 32, or fewer where a group would have fewer than 4 channels."""
    z_channels: int = 256
    """Channels of the latent before quantisation."""
    embed_dim: int = 256
    """Dimension of a code vector."""
    quantizer: Quantizer = "vq"
    """vq: nearest code. l2: nearest on the unit sphere, best with a low embed_dim. simvq: nearest code of a trained
    linear map of fixed vectors. ibq: largest dot product, with a gradient to all codes. fsq: each channel rounded to
    its levels. lfq, bsq: the sign of each channel, bsq on the unit sphere. Not for training: gumbel, of released
    models, and palette, whose codes are colours."""
    levels: tuple[int, ...] = ()
    """Levels of each channel of fsq, such as (8, 5, 5, 5) for 1,000 codes; empty for every other quantiser."""
    codebook_size: int = 1024
    """Number of code vectors; above 65,536, shards store uint32."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, InputError)
        ok = 2 <= self.codebook_size <= MAX_CODEBOOK_SIZE
        _require(ok, "codebook_size", self.codebook_size, f"choose 2 … {MAX_CODEBOOK_SIZE}")
        self._check_plugin()
        for name, most in _MOST.items():
            _require(1 <= getattr(self, name) <= most, name, getattr(self, name), f"choose 1 … {most}")
        _require(self.ch % 8 == 0, "ch", self.ch, "choose a multiple of 8 (of 32 from ch 128 on, for GroupNorm)")
        groups = self.norm_groups
        _require(groups >= 0, "norm_groups", groups, "choose 0 (automatic) or the number of groups")
        ok = 1 <= len(self.ch_mult) <= 12 and all(1 <= factor <= 64 for factor in self.ch_mult)
        _require(ok, "ch_mult", self.ch_mult, "give 1 to 12 factors of 1 … 64")
        for width in (self.ch * factor for factor in (1, *self.ch_mult)):
            fits = width % groups == 0 if groups else width < 128 or width % 32 == 0
            needed = f"a multiple of norm_groups = {groups}" if groups else "from 128 on a multiple of 32"
            _require(fits, "ch", self.ch, f"ch · ch_mult is {width}: GroupNorm requires {needed}")
        ok = self.patch in (1, 2, 4, 8, 16, 32) and (self.patch == 1 or self.projected)
        _require(ok, "patch", self.patch, "choose 1, 2, 4, 8, 16 or 32 in the network vqgan, 1 in others")
        ok = 0 <= self.halvings <= (len(self.ch_mult) if self.projected else 0)
        _require(ok, "halvings", self.halvings, f"choose 0 … {len(self.ch_mult)} in the network vqgan, 0 in others")
        _require(
            bool(self.kind) or self.resolution % self.factor == 0,
            "resolution",
            self.resolution,
            f"choose a multiple of {self.factor}, the downsampling factor of the network",
        )
        ok, remedy = self.projected or self.z_channels == self.embed_dim, f"{self.network} requires {self.z_channels}"
        _require(ok, "embed_dim", self.embed_dim, f"{remedy}, the z_channels, because it has no projection")
        self._check_digits()
        if self.quantizer == "palette":
            ok = self.modality in ("rgb", "pose") and self.embed_dim == 3 and self.factor == 1
            _require(ok, "quantizer", self.quantizer, "a palette has RGB colours, one a pixel: use train-palette")
        seg = self.modality == "segmentation"
        _require(
            (2 <= self.n_labels <= 256) if seg else self.n_labels == 0,
            "n_labels",
            self.n_labels,
            "choose 2 … 256 for segmentation (ADE20K: 151) and 0 for every other modality",
        )

    def _check_plugin(self) -> None:
        """Check the fields of a tokenizer of another package, which the package gives."""
        grid, mark = self.plugin_grid, self.plugin_fingerprint
        sides = len(grid) == 2 and all(1 <= side <= 4096 for side in grid)
        ok = sides if self.kind else not grid
        remedy = "give the rows and columns of its codes, 1 … 4096" if self.kind else "only with kind: choose ()"
        _require(ok, "plugin_grid", grid, remedy)
        remedy = "give what identifies its weights" if self.kind else "only with kind: choose ''"
        _require(bool(mark) == bool(self.kind), "plugin_fingerprint", mark, remedy)

    def _check_digits(self) -> None:
        """Check the quantisers whose codes are numbers: the digits give the dimension and the size of the codebook."""
        fsq, bits = self.quantizer == "fsq", self.quantizer in ("lfq", "bsq")
        ok = bool(self.levels) == fsq and len(self.levels) <= 24 and all(3 <= level <= 1024 for level in self.levels)
        remedy = "give 3 … 1024 for each channel, such as (8, 5, 5, 5)" if fsq else "only fsq has levels: choose ()"
        _require(ok, "levels", self.levels, remedy)
        if fsq or bits:
            dim = len(self.levels) if fsq else self.codebook_size.bit_length() - 1
            size = math.prod(self.levels) if fsq else 2**dim
            given = f"levels {self.levels} are {size:,} codes" if fsq else f"{self.quantizer} has a bit per channel"
            found = f"({self.embed_dim}, {self.codebook_size})"
            ok = (self.embed_dim, self.codebook_size) == (dim, size)
            _require(ok, "(embed_dim, codebook_size)", found, f"{given}: choose ({dim}, {size})")

    @property
    def factor(self) -> int:
        """Pixels per code along one side."""
        return self.patch << self.n_halvings

    @property
    def n_halvings(self) -> int:
        """Levels after which the resolution halves."""
        return self.halvings or len(self.ch_mult) - 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes, (h, w)."""
        if self.kind:
            return self.plugin_grid[0], self.plugin_grid[1]
        side = self.resolution // self.factor
        return side, side

    def at_resolution(self, resolution: int) -> "ModelConfig":
        """Return the same network for pictures of another side; attention stays at the levels that have it.

        Raises:
            InputError: The side is no multiple of `factor`.
        """
        sides = tuple(side * resolution // self.resolution for side in self.attn_resolutions)
        return replace(self, resolution=resolution, attn_resolutions=sides)

    @property
    def projected(self) -> bool:
        """Whether there are 1×1 convolutions between the networks and the quantiser."""
        return self.network == "vqgan"

    @property
    def channels(self) -> int:
        """Input and output channels."""
        return {"segmentation": self.n_labels, "depth": 1}.get(self.modality, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Terms of the training loss (VQGAN paper, equations 2 to 7)."""

    l2_weight: float = 0.0
    """Factor of the mean squared error, added to the mean absolute error; not for masks."""
    perceptual: Perceptual = "lpips-vgg"
    """Perceptual distance; not for masks. Depth becomes three equal channels. The weights of efficientnet-lite0 are
    in its package; the others are downloaded."""
    perceptual_weight: float = 1.0
    """Factor of the perceptual distance, per image."""
    trunk: str = ""
    """Path of the LPIPS trunk's torchvision weights; empty: torchvision's own cache or download."""
    beta: float = 0.25
    """Factor of the commitment term, the one that pulls the encoder towards the codes."""
    swap_beta: bool = False
    """Apply beta to the other term, which pulls the codes, as in the training of the released VQGAN checkpoints."""
    codebook_decay: float = 0.0
    """Decay of an EMA codebook, such as 0.99; 0: the codes are trained by gradient."""
    quantizer_gradient: Literal["straight-through", "rotation"] = "straight-through"
    """Gradient of vq, l2 and simvq to the latent: that of the code vector unchanged, or turned and scaled as the code
    vector is against the latent (the rotation trick)."""
    entropy_weight: float = 0.0
    """Factor of the entropy term, by which all codes are used; lfq and bsq require it, such as 0.1. Not for fsq."""
    entropy_temperature: float = 0.01
    """Divides the negative squared distances (ibq: the dot products) to the codes, for the entropy term."""
    codebook_weight: float = 1.0
    """Factor of the whole quantisation loss."""
    disc_weight: float = 0.8
    """Factor of the adversarial term, in addition to the adaptive weight."""
    discriminator: Discriminator = "patch"
    """patch: PatchGAN. stylegan: the residual network of StyleGAN2, for sides that are powers of two. dino: heads on
    frozen features of DINO; not for masks."""
    disc_trunk: str = ""
    """Path of DINO's weights, dino_deitsmall16_pretrain.pth of its repository; only for the discriminator dino."""
    disc_loss: DiscLoss = "hinge"
    """The discriminator's loss: hinge, or the vanilla cross-entropy."""
    disc_start: int = 10_000
    """Step at which the discriminator starts; a value beyond `steps` disables it."""
    disc_ramp: int = 1_000
    """Steps over which the adversarial term increases from zero to its weight."""
    disc_ch: int = 64
    """Channels of the first layer of the discriminators patch and stylegan."""
    disc_layers: int = 3
    """Strided layers of the patch discriminator."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, InputError)
        weights = ("l2_weight", "perceptual_weight", "codebook_weight", "disc_weight", "entropy_weight")
        for name in (*weights, "beta", "disc_start"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "choose 0 or more")
        ok = self.entropy_temperature > 0
        _require(ok, "entropy_temperature", self.entropy_temperature, "choose a positive number")
        _require(0 <= self.codebook_decay < 1, "codebook_decay", self.codebook_decay, "choose a number in [0, 1)")
        ok = self.discriminator != "dino" or bool(self.disc_trunk)
        remedy = "dino requires the path of dino_deitsmall16_pretrain.pth, from github.com/facebookresearch/dino"
        _require(ok, "disc_trunk", self.disc_trunk, remedy)
        _require(self.disc_ramp >= 1, "disc_ramp", self.disc_ramp, "choose 1 or more")
        _require(1 <= self.disc_layers <= 5, "disc_layers", self.disc_layers, "choose 1 … 5")
        ok = 0 < self.disc_ch <= 4096 and self.disc_ch % 4 == 0
        _require(ok, "disc_ch", self.disc_ch, "choose a multiple of 4 up to 4096")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run of a VQGAN."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss terms."""
    init: str = ""
    """Folder of the tokenizer, trained or imported, from whose weights and architecture the run starts, or its address
    on the Hub (hf://OWNER/NAME); empty: random weights. A run that resumes requires it as well. Resolution and geometry
    may differ. The discriminator always starts anew."""
    init_fingerprint: str = ""
    """Fingerprint of the tokenizer in `init`, filled in by the run."""
    freeze: Literal["none", "encoder"] = "none"
    """encoder: train the decoder alone. All codes stay those of `init`, so that its shards and priors remain valid."""
    codes_of: str = ""
    """Fingerprint of the tokenizer that gives the same codes, filled in by the run where the encoder is frozen."""
    batch_size: int = 12
    """Images per step, over all processes."""
    accumulate: int = 1
    """Parts in which a process computes its part of a batch one after the other, to save memory."""
    steps: int = 100_000
    """Optimiser steps."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Optimiser of the autoencoder: Adam, or for its convolutions Muon, which learns more per step. The discriminator
    has Adam."""
    learning_rate: float = 5.4e-5
    """Adam's learning rate, for both optimisers; taming-transformers' rule is 4.5e-6 times the batch size."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Adam's decay rates, those of taming-transformers; short runs learn faster with (0.9, 0.99)."""
    warmup_steps: int = 0
    """Steps over which the learning rate increases linearly from zero."""
    decay: bool = False
    """Cosine decay of the learning rate to a tenth over the run."""
    clip_grad: float = 0.0
    """Largest norm of the gradient, for each optimiser; 0: no clipping."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights, which is then evaluated and saved; 0: no average."""
    compile: bool = False
    """Compile encoder and decoder with torch.compile, which takes minutes; later steps are faster."""
    crop_scale: float = 0.0
    """Random resized crop: smallest side of the window as a fraction of the shorter side (geometry pad: of the longer
    side; stretch: of each side); 0: the whole picture."""
    crop: int = 0
    """Side of the random crop to train on, in pixels; 0: the whole picture."""
    mirror: bool = True
    """Mirror half of the training images at random."""
    restart_every: int = 0
    """Steps between restarts of unused codes at random encoder outputs; 0: no restarts."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    precision: Precision = "auto"
    """Type of the computation. auto: bfloat16 if the GPU supports it or the CPU is faster in it, else float32."""
    device: Device = "auto"
    """Where to train. auto: a GPU if one is available."""
    eval_every: int = 1_000
    """Steps between evaluations, each with a grid of reconstructions."""
    eval_images: int = 0
    """Largest number of validation images per evaluation; 0: all."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Number of the latest checkpoints that are kept, besides best/, the tokenizer with the lowest validation loss."""
    reader_threads: int = 2
    """Threads per process that decode pictures ahead."""
    tracker: TrackerName = "none"
    """Where metrics go besides the run's folder: Weights & Biases (wandb), trackio, or nowhere."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, InputError)
        counts = ("batch_size", "steps", "accumulate", "reader_threads")
        for name in (*counts, "eval_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "choose 1 or more")
        _require(self.reader_threads <= 1024, "reader_threads", self.reader_threads, "choose at most 1024")
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "choose numbers in [0, 1)")
        _require(self.eval_images >= 0, "eval_images", self.eval_images, "choose 0 (all) or more")
        _require(self.clip_grad >= 0, "clip_grad", self.clip_grad, "choose 0 (off) or more")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "choose a number in [0, 1)")
        _require(0 <= self.crop_scale <= 1, "crop_scale", self.crop_scale, "choose a fraction from 0 to 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "choose a positive rate")
        for name in ("seed", "warmup_steps"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "choose 0 or more")
        if self.freeze == "encoder":
            _require(bool(self.init), "freeze", self.freeze, "name the tokenizer to start from in init, or choose none")
            fixed = "the codes are frozen: choose 0"
            _require(not self.restart_every, "restart_every", self.restart_every, fixed)
            _require(not self.loss.codebook_decay, "loss.codebook_decay", self.loss.codebook_decay, fixed)
        ok = not self.restart_every or self.model.quantizer in ("vq", "l2")
        _require(ok, "restart_every", self.restart_every, f"{self.model.quantizer} has no codes to restart: choose 0")
        for name, (off, why) in inapplicable(self.model, self.loss).items():
            _require(False, f"loss.{name}", getattr(self.loss, name), f"{why}; choose {off!r}")
        ok = self.crop >= 0 and self.crop <= self.model.resolution and self.crop % self.model.factor == 0
        _require(ok, "crop", self.crop, f"choose 0 or a multiple of {self.model.factor} up to {self.model.resolution}")


def inapplicable(model: ModelConfig, loss: LossConfig) -> dict[str, tuple[Any, str]]:
    """Return the fields of a loss that do not apply to a model: field → the value that disables it, and the reason."""
    found: dict[str, tuple[Any, str]] = {}
    if model.modality == "segmentation" and loss.perceptual != "none" and loss.perceptual_weight:
        found["perceptual"] = "none", "perceptual networks do not apply to masks"
    if model.modality == "segmentation" and loss.l2_weight:
        found["l2_weight"] = 0.0, "masks are compared by cross-entropy"
    if loss.disc_trunk and loss.discriminator != "dino":
        found["disc_trunk"] = "", f"only the discriminator dino has a trunk, not {loss.discriminator}"
    if loss.discriminator == "dino" and model.modality == "segmentation":
        found["discriminator"] = "patch", "dino does not apply to masks"
    if loss.trunk and not loss.perceptual.startswith("lpips-"):
        found["trunk"] = "", f"only LPIPS has a trunk, and perceptual is {loss.perceptual!r}"
    kind, turns = model.quantizer, ("vq", "l2", "simvq")
    if loss.codebook_decay and kind not in ("vq", "l2"):
        found["codebook_decay"] = 0.0, f"{kind} has no codebook of moving averages"
    if loss.entropy_weight and kind in ("fsq", "gumbel", "palette"):
        found["entropy_weight"] = 0.0, f"{kind} has no entropy term"
    if loss.quantizer_gradient == "rotation" and kind not in turns:
        found["quantizer_gradient"] = "straight-through", f"{kind} has a gradient of its own"
    if loss.swap_beta and loss.codebook_decay:
        found["swap_beta"] = False, "no term pulls the codes of an EMA codebook"
    return found

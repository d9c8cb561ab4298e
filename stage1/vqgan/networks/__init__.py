"""The encoders and decoders, each pair in a file of its own."""

from collections.abc import Callable

from vqgan.config import ModelConfig, Network
from vqgan.networks import magvit2, maskgit, vqgan
from vqgan.networks.base import DecoderNetwork, EncoderNetwork

_Pair = tuple[Callable[[ModelConfig], EncoderNetwork], Callable[[ModelConfig], DecoderNetwork]]
NETWORKS: dict[Network, _Pair] = {
    "vqgan": (vqgan.Encoder, vqgan.Decoder),
    "maskgit": (maskgit.Encoder, maskgit.Decoder),
    "magvit2": (magvit2.Encoder, magvit2.Decoder),
}
"""Encoder and decoder of each `config.network`."""

"""Weights of torch-fidelity's Inception: the published file is not part of the tests."""

from pathlib import Path

import pytest
import torch
from torch import nn


def write_inception(path: Path) -> nn.Module:
    """Write random weights, whose features differ between pictures, and return their network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():
        torch.manual_seed(0)
        patched.setattr(Inception, "load_state_dict", lambda self, _: None)
        network: nn.Module = Inception("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return network

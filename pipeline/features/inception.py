"""The network of the Frechet inception distance, with weights from a file of the user's.

torch-fidelity's InceptionV3 is the TensorFlow graph of Heusel et al. 2017 in PyTorch: it resizes to
299 px as TensorFlow 1 did and ends in 2,048 averaged features. Only with these weights and
this resizing is a distance comparable with published ones.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.images import Images
from pipeline.errors import InputError
from pipeline.features.frozen import Encoder, Features, run_frozen
from pipeline.features.weight_files import (
    MISSING_PACKAGES,
    digest_tensors,
    load_strictly,
    read_tensors,
)
from pipeline.hashing import digest_json
from pipeline.seeds import seeded_initialisers

_WIDTH = 2048
_LAYER = "2048"
_PREPROCESSING = "uint8 RGB, resized bilinearly to 299 as TensorFlow 1, (x - 128) / 128"


def inception_encoder(path: Path, device: torch.device, batch_images: int = 32) -> Encoder:
    """Return the encoder of the Frechet inception distance (Heusel et al. 2017), D = 2,048.

    Args:
        path: safetensors file of torch-fidelity's InceptionV3 weights; docs/encoders.md says how
            to make one.
        device: where to compute.
        batch_images: images at a time; each takes about 30 MB while it is computed.

    Raises:
        InputError: torch-fidelity is not installed, or the file is not of this network.
    """
    network = _build()
    tensors = read_tensors(path)
    load_strictly(network, tensors, str(path))
    network.to(device)

    def forward(pixels: Tensor) -> Tensor:
        features: Tensor = network(pixels)[0]
        return features

    def embed(images: Images) -> Features:
        return run_frozen(forward, images, _WIDTH, device, batch_images)

    digest = digest_json(["inception", _PREPROCESSING, _LAYER, digest_tensors(tensors)])
    return Encoder("inception", digest, _WIDTH, embed)


def _build() -> nn.Module:
    """Return torch-fidelity's network in eval mode, its weights still random.

    Its constructor insists on `torch.load` of a file of weights, which would unpickle whatever is
    in it. It is given an empty dict that was pickled here a line earlier, and told that nothing
    is to be loaded: what the user gave never comes near.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise InputError(
            f"inception: torch-fidelity is not installed; {MISSING_PACKAGES}"
        ) from None

    class WithoutWeights(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, weights: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(weights, *args, **kwargs) if weights else None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with seeded_initialisers(0, "inception"):  # drawn in vain, but from no global generator
        network: nn.Module = WithoutWeights(
            "inception", [_LAYER], feature_extractor_weights_path=nothing
        )
    return network

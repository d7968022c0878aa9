"""Feature networks for Fréchet and kernel distances: torch-fidelity's, and two small ones that ship with the package.

The small ones are classifiers of digits and of Fashion-MNIST, for machines without a network connection. They are
registered with torch-fidelity like any other extractor; what is measured with them is called ``FD-digits`` and
``FD-fashion`` and never FID, since numbers of different extractors have nothing in common.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch_fidelity
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from sde_diffusion.errors import InputError
from sde_diffusion.files import sha256

WEIGHTS = Path(__file__).parent / "weights"
FEATURES = 64


class Classifier(nn.Module):
    """Convolutions, a layer of 64 features, ten classes.

    Args:
        side: height and width of the grey pictures it sees.
        channels: of the first stage; the second has twice as many.
    """

    def __init__(self, side: int, channels: int = 32) -> None:
        super().__init__()
        stages = []
        for inside, outside in ((1, channels), (channels, 2 * channels)):
            stages += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
            stages += [nn.Conv2d(outside, outside, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        self.convolutions = nn.Sequential(*stages)
        self.features = nn.Linear(2 * channels * (side // 4) ** 2, FEATURES)
        self.logits = nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 64) and logits (B, 10) of uint8 pictures (B, 1, side, side)."""
        x = self.convolutions(images.float() / 127.5 - 1.0)
        features = self.features(x.flatten(1))
        return features, self.logits(features.relu())


class _BuiltIn(FeatureExtractorBase):  # type: ignore[misc]
    """A shipped classifier as torch-fidelity wants an extractor."""

    side: int
    file: str

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        from safetensors.torch import load_file

        self.net = Classifier(self.side)
        self.net.load_state_dict(load_file(WEIGHTS / self.file))
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits", "fid": "features", "kid": "features", "prc": "features"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @classmethod
    def get_dummy_input_for_compile(cls) -> Tensor:
        return torch.zeros(1, 1, cls.side, cls.side, dtype=torch.uint8)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        expected = (1, self.side, self.side)
        if input.dtype != torch.uint8 or tuple(input.shape[1:]) != expected:
            raise InputError(
                f"images of shape {tuple(input.shape[1:])}, {input.dtype}: expected uint8 {expected} for extractor "
                f"{self.get_name()!r}; choose another extractor"
            )
        found = dict(zip(self.get_provided_features_list(), self.net(input), strict=True))
        return tuple(found[name] for name in self.features_list)


class DigitsExtractor(_BuiltIn):
    """Classifier of scikit-learn's digits."""

    side, file = 8, "digits.safetensors"


class FashionExtractor(_BuiltIn):
    """Classifier of Fashion-MNIST."""

    side, file = 28, "fashion.safetensors"


BUILT_IN = {"digits": DigitsExtractor, "fashion": FashionExtractor}
for _name, _class in BUILT_IN.items():
    torch_fidelity.register_feature_extractor(_name, _class)


def metric_name(extractor: str) -> str:
    """Return what a Fréchet distance with this extractor is called: FID only with Inception."""
    return "FID" if extractor.startswith("inception") else f"FD-{extractor}"


def digest(extractor: str, weights: Path | None = None) -> str:
    """Return the SHA-256 of an extractor's weights, or its name where torch-fidelity fetches them itself."""
    path = WEIGHTS / BUILT_IN[extractor].file if extractor in BUILT_IN else weights
    return f"{extractor} of torch-fidelity {torch_fidelity.__version__}" if path is None else sha256(path)

"""Guidance: denoisers that wrap a denoiser and change what it predicts, one method a file."""

from sde_diffusion.guidance.base import GUIDANCE
from sde_diffusion.guidance.classifier_free import ClassifierFree
from sde_diffusion.guidance.thresholding import THRESHOLDS, DynamicThreshold, StaticThreshold, Threshold

__all__ = ["GUIDANCE", "THRESHOLDS", "ClassifierFree", "DynamicThreshold", "StaticThreshold", "Threshold"]

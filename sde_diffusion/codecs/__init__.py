"""Codecs by name: the ways between data and the space that models live in."""

from sde_diffusion.codecs import grey_levels, identity, standardised  # noqa: F401  (each registers itself)
from sde_diffusion.codecs.base import CODECS, Codec, codec_for, describe_codec, stored_codec
from sde_diffusion.codecs.grey_levels import GreyLevels
from sde_diffusion.codecs.identity import Identity
from sde_diffusion.codecs.standardised import Standardised

__all__ = [
    "CODECS",
    "Codec",
    "GreyLevels",
    "Identity",
    "Standardised",
    "codec_for",
    "describe_codec",
    "stored_codec",
]

"""A trained run: its denoiser, and all that can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

import samplers
from samplers import Sampler
from sde_diffusion.config import build_dataset, build_sampler, wrap, wrapping
from sde_diffusion.data import Dataset
from sde_diffusion.denoisers import AbstractDenoiser, Denoiser
from sde_diffusion.errors import require
from sde_diffusion.evaluation.report import write_report
from sde_diffusion.evaluation.scoring import ScoringOptions
from sde_diffusion.evaluation.sweep import Row, settings
from sde_diffusion.likelihood import LikelihoodResult, log_likelihood
from sde_diffusion.networks.execution import precision_of
from sde_diffusion.runs.sample import Drawn, draw
from sde_diffusion.runs.score import Scored, score
from sde_diffusion.runs.sweep import SweepOptions, sweep_run
from sde_diffusion.training.settings import GIVEN

STEPS, TOLERANCES = (5, 10, 20, 50), (1e-1, 1e-2, 1e-3)
"""What a sweep runs over where it is not told."""
SWEPT = ("ancestral", "ddim", "heun", "pc", "probability_flow")


@dataclass(frozen=True)
class Run:
    """A trained run, on its device.

    Attributes:
        workdir: its folder, where results are written.
        config: its configuration, whole.
        device: where it computes.
        denoiser: around the averaged weights, run as the configuration says.
        float32: the same in float32, not compiled: what likelihoods and exact solutions are computed with.
        shape: shape of one sample.
        levels: number of grey levels of the data; None for vectors.
        checkpoint: folder that the weights were read from.
        step: training step of the weights.
        digest: SHA-256 of the weights' file.
    """

    workdir: Path
    config: ConfigDict = field(repr=False)
    device: torch.device
    denoiser: Denoiser = field(repr=False)
    float32: Denoiser = field(repr=False)
    shape: tuple[int, ...]
    levels: int | None
    checkpoint: Path
    step: int
    digest: str
    _data: Dataset | None = field(default=None, repr=False)

    @property
    def dtype(self) -> str:
        """The precision in which the denoiser's network is run."""
        return precision_of(self.denoiser.net)

    def denoiser_of(self, sampler: Sampler) -> AbstractDenoiser:
        """Return what a sampler draws from: the denoiser, with the configuration's guidance and bound around it."""
        return wrap(self.config, self.denoiser, self._name_of(sampler))

    def wrapping(self, sampler: Sampler) -> dict[str, dict[str, Any]]:
        """Return what is around the denoiser when a sampler draws: names and options of guidance and thresholding."""
        return wrapping(self.config, self._name_of(sampler))

    @staticmethod
    def _name_of(sampler: Sampler) -> str:
        known = type(sampler) in map(samplers.SAMPLERS.__getitem__, samplers.SAMPLERS)
        return samplers.SAMPLERS.name_of(sampler) if known else ""

    @property
    def scored(self) -> Denoiser:
        """The denoiser of likelihoods: in float32, unless ``config.precision`` names another."""
        return self.float32 if self.config.precision == "auto" else self.denoiser

    @cached_property
    def dataset(self) -> Dataset:
        """The data of the run.

        Raises:
            InputError: if they cannot be had.
        """
        if self._data is not None:
            return self._data
        remedy = "open it with sd.open_run(path, data=…)"
        require(self.config.data.name != GIVEN, "data", GIVEN, "the data, which were handed over in Python", remedy)
        return build_dataset(self.config)

    def sampler(self, name: str = "", num_steps: int | None = None, **options: Any) -> Sampler:
        """Return a sampler with the options that the run's configuration has for it.

        Args:
            name: by default that of the configuration.
            num_steps: by default the sampler's.
            options: others that override the configured ones.

        Raises:
            InputError: on an unknown sampler or option.
        """
        return build_sampler(self.config, name, num_steps, **options)

    def sample(
        self,
        sampler: str | Sampler = "",
        *,
        num_steps: int | None = None,
        n: int = 64,
        seed: int | None = None,
        batch_size: int = 64,
        trajectory: bool = False,
        quiet: bool = False,
        **options: Any,
    ) -> Drawn:
        """Draw ``n`` samples; sample i depends on the seed and on i alone.

        Args:
            sampler: a sampler, or the name of one, "" for the configured.
            num_steps, options: of the sampler, where it is named.
            n: number of samples.
            seed: by default the configuration's.
            batch_size: samples at a time; does not change them.
            trajectory: keep the first samples' states on their way.
            quiet: no progress bar.

        Returns:
            The samples (n, *shape) in model space on the CPU, and what they cost.
        """
        if not isinstance(sampler, Sampler):
            sampler = self.sampler(sampler, num_steps, **options)
        chosen = self.config.seed if seed is None else seed
        return draw(self, sampler, n, batch_size=batch_size, seed=chosen, quiet=quiet, trajectory=trajectory)

    def likelihood(self, x: Tensor, **options: Any) -> LikelihoodResult:
        """Return the exact log-likelihood of examples in model space, (B, *shape), in nats.

        Args:
            options: of :func:`sde_diffusion.log_likelihood`: ``divergence``, ``probes``, ``seed`` …
        """
        return log_likelihood(self.scored, x.to(self.device), **{"seed": self.config.seed, **options})

    def score(
        self,
        split: str = "test",
        *,
        data: Dataset | None = None,
        stem: str = "likelihood",
        num_images: int = 0,
        options: ScoringOptions | None = None,
        batch_size: int = 64,
        quiet: bool = False,
    ) -> Scored:
        """Score a split of a data set and write ``STEM.json`` with its ``.npz`` and ``.png``.

        Args:
            split: "test" or "train".
            data: what to score; by default the run's own data.
            stem: what the files are called.
            num_images: the first so many; 0 for all.
            options: what is computed.
            batch_size: images at a time; does not change their numbers.
        """
        require(split in ("test", "train"), "split", split, "'test' or 'train'")
        data = self.dataset if data is None else data
        k = getattr(data, split)
        k = k[: num_images or len(k)]
        facts = {"data": data.name, "split": split}
        return score(self, data, k, options or ScoringOptions(), facts, stem=stem, batch_size=batch_size, quiet=quiet)

    def benchmark(
        self,
        names: Sequence[str] = SWEPT,
        *,
        steps: Sequence[int] = STEPS,
        tolerances: Sequence[float] = TOLERANCES,
        seeds: Sequence[int] = (0,),
        options: SweepOptions | None = None,
        quiet: bool = False,
    ) -> list[Row]:
        """Sweep samplers over their cost; write ``benchmark.jsonl`` (as it goes), its table, figure and pictures.

        Args:
            names: of samplers.
            steps: of those that take steps.
            tolerances: of those that choose their own.
            seeds: more than one give an error that includes them.
            options: how many samples, and what they are compared with.

        Returns:
            The rows of this sweep, those that were recorded before among them.
        """
        plan = settings({name: list(samplers.config(name)) for name in names}, steps, tolerances, seeds)
        return sweep_run(self, plan, options or SweepOptions(), quiet)

    def report(self, *others: Run | str | Path) -> Path:
        """Write the page of the run, or of several side by side; returns its path."""
        folders = [other.workdir if isinstance(other, Run) else Path(other) for other in others]
        return write_report([self.workdir, *folders])[0]

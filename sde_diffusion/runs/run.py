"""A trained run: its denoiser, and all that can be done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

import samplers
from samplers import Sampler
from sde_diffusion.codecs import Codec
from sde_diffusion.config import build_dataset, build_sampler, wrap, wrapping
from sde_diffusion.data import Dataset
from sde_diffusion.denoisers import AbstractDenoiser, Denoiser
from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.evaluation.pictures import is_picture
from sde_diffusion.evaluation.report import write_report
from sde_diffusion.evaluation.scoring import ScoringOptions, codec_noise
from sde_diffusion.evaluation.sweep import Row, settings
from sde_diffusion.likelihood import LikelihoodResult, log_likelihood
from sde_diffusion.networks.execution import precision_of
from sde_diffusion.runs.conditions import Classes, conditions_of_samples
from sde_diffusion.runs.sample import Drawn, draw
from sde_diffusion.runs.save import Saved, SavingOptions, save_samples
from sde_diffusion.runs.score import Scored, score
from sde_diffusion.runs.sweep import SweepOptions, sweep_run
from sde_diffusion.terminal import notice
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
        levels: number of grey levels of the data; None for continuous data.
        codec: the way between data and the space in which the denoiser works.
        class_names, columns: names of the classes, and of the components of vectors, where the data have them.
        condition_shapes: shape of one value of each condition that the data have, by name.
        checkpoint: folder that the weights were read from.
        step: training step of the weights.
        digest: SHA-256 of the weights' file.
        changed: what of the model is otherwise than it was trained with, by keys of the configuration.
    """

    workdir: Path
    config: ConfigDict = field(repr=False)
    device: torch.device
    denoiser: Denoiser = field(repr=False)
    float32: Denoiser = field(repr=False)
    shape: tuple[int, ...]
    levels: int | None
    codec: Codec
    class_names: tuple[str, ...]
    columns: tuple[str, ...]
    condition_shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    checkpoint: Path
    step: int
    digest: str
    changed: dict[str, Any] = field(default_factory=dict, repr=False)
    _data: Dataset | None = field(default=None, repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes that the network is told; 0 for none."""
        return int(getattr(self.denoiser.net, "num_classes", 0))

    @cached_property
    def data_beside(self) -> Tensor | None:
        """Held-out examples to be drawn beside samples that are no pictures; None if they cannot be had."""
        if is_picture(self.shape):
            return None
        try:
            return self.dataset.test
        except InputError as error:
            notice(f"{error}; samples are drawn without the data beside them")
            return None

    @property
    def dtype(self) -> str:
        """The precision in which the denoiser's network is run."""
        return precision_of(self.denoiser.net)

    def denoiser_of(self, sampler: Sampler) -> AbstractDenoiser:
        """Return what a sampler draws from: the denoiser, with the configuration's guidance and bound around it."""
        return wrap(self.config, self.denoiser, self.name_of(sampler))

    def wrapping(self, sampler: Sampler) -> dict[str, dict[str, Any]]:
        """Return what is around the denoiser when a sampler draws: names and options of guidance and thresholding."""
        return wrapping(self.config, self.name_of(sampler))

    @staticmethod
    def name_of(sampler: Sampler) -> str:
        """Return the name under which a sampler is registered; "" if it is not."""
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
        noise: str = "independent",
        trajectory: bool = False,
        quiet: bool = False,
        classes: Classes = None,
        conditions: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Drawn:
        """Draw ``n`` samples; sample i depends on the seed and on i alone.

        Args:
            sampler: a sampler, or the name of one, "" for the configured.
            num_steps, options: of the sampler, where it is named.
            n: number of samples.
            seed: by default the configuration's.
            batch_size: samples at a time; does not change them.
            noise: "independent", or "brownian", as of :meth:`samplers.Sampler.draw`.
            trajectory: keep the states of the first samples, of the first batch, on their way.
            quiet: no progress bar.
            classes: numbers or names of classes, which take turns, "all", or a tensor (n,) with that of each.
            conditions: others that the network takes, by name, (n, *) each.

        Returns:
            The samples (n, *shape) as the data are, on the CPU, and what they cost.

        Raises:
            InputError: on conditions that the run does not take, that are missing, of another length or out of range.
        """
        if not isinstance(sampler, Sampler):
            sampler = self.sampler(sampler, num_steps, **options)
        how = self._drawn(n, seed, classes, conditions) | {"batch_size": batch_size, "noise": noise, "quiet": quiet}
        return draw(self, sampler, n, trajectory=trajectory, **how)

    def save_samples(
        self,
        sampler: str | Sampler = "",
        *,
        num_steps: int | None = None,
        n: int = 64,
        seed: int | None = None,
        batch_size: int = 64,
        noise: str = "independent",
        saving: SavingOptions | None = None,
        quiet: bool = False,
        classes: Classes = None,
        conditions: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Saved:
        """Draw ``n`` samples into files, however many: a shard at a time is held in memory.

        Shards that are there are not drawn again: the same call goes on where a killed one was. What was drawn with
        anything else lies under another name, or is refused.

        Args:
            saving: where they are written, and how.
            sampler, num_steps, n, seed, batch_size, noise, quiet, classes, conditions, options: as of :meth:`sample`.

        Raises:
            InputError: on what :meth:`sample` refuses, if another draw is there, or files of which no record tells.
        """
        if not isinstance(sampler, Sampler):
            sampler = self.sampler(sampler, num_steps, **options)
        how = self._drawn(n, seed, classes, conditions) | {"batch_size": batch_size, "noise": noise, "quiet": quiet}
        return save_samples(self, sampler, n, saving or SavingOptions(), **how)

    def _drawn(
        self, n: int, seed: int | None, classes: Classes, conditions: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return the seed and the conditions of ``n`` samples, checked."""
        require_int("n", n, 1)
        given = conditions_of_samples(self, n, classes, conditions or {})
        return {"seed": self.config.seed if seed is None else seed, "conditions": given}

    def likelihood(
        self, x: Tensor, *, classes: Classes = None, conditions: Mapping[str, Any] | None = None, **options: Any
    ) -> LikelihoodResult:
        """Return the exact log-likelihood of examples as the data are, (B, *shape), in nats: log p(x).

        Of grey levels it is that of a probability, bounded in expectation over the dequantisation; of continuous data
        of a density in the units of the data.

        Args:
            classes, conditions: given which, as of :meth:`sample`.
            options: of :func:`sde_diffusion.log_likelihood`: ``divergence``, ``probes``, ``seed`` …
        """
        require(tuple(x.shape[1:]) == self.shape, "x shape", tuple(x.shape), f"(B, {', '.join(map(str, self.shape))})")
        options = {"seed": self.config.seed, **options}
        given = conditions_of_samples(self, len(x), classes, conditions or {})
        first = int(options.get("first_index", 0))
        noise = codec_noise(int(options["seed"]), range(first, first + len(x)))
        z, weight = self.codec.density.encode(x.detach().cpu(), noise)
        found = log_likelihood(self.scored, z.to(self.device), **options, **given)
        return replace(found, log_prob=found.log_prob + weight.to(found.log_prob))

    def score(
        self,
        split: str = "test",
        *,
        data: Dataset | None = None,
        stem: str = "likelihood",
        num_examples: int = 0,
        classes: Classes = None,
        options: ScoringOptions | None = None,
        batch_size: int = 64,
        quiet: bool = False,
    ) -> Scored:
        """Score a split of a data set and write ``STEM.json`` with its ``.npz`` and ``.png``.

        Args:
            split: "test" or "train".
            data: what to score; by default the run's own data.
            stem: what the files are called.
            num_examples: the first so many; 0 for all.
            classes: given which; by default the labels of the data, if the run has classes, "none" for no class.
            options: what is computed.
            batch_size: examples at a time; does not change their numbers.

        Raises:
            InputError: if the run has conditions that the data lack.
        """
        require(split in ("test", "train"), "split", split, "'test' or 'train'")
        data = self.dataset if data is None else data
        examples = data.split(split)
        examples = examples[: num_examples or len(examples)]
        facts = {"data": data.name, "split": split}
        how: dict[str, Any] = {"classes": classes, "stem": stem, "batch_size": batch_size, "quiet": quiet}
        return score(self, examples, options or ScoringOptions(), facts, **how)

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

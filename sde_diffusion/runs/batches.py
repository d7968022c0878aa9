"""What a training is fed: the examples of each step, encoded, mirrored and with labels left out as asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.codecs import Codec
from sde_diffusion.data import Dataset, Examples, train_batch
from sde_diffusion.errors import require
from sde_diffusion.noise import NoiseStream
from sde_diffusion.ops import column
from sde_diffusion.training.loop import TrainingOptions


class TrainingBatches:
    """``batch(step, noise)`` for the training loop, a pure function of (seed, step).

    Args:
        dataset: the data.
        codec: the way from them to model space.
        options: of the training.
        seed: of the order of the data.
        conditions: names of those that the network is told.

    Raises:
        InputError: if other data than pictures were to be mirrored.
    """

    def __init__(
        self, dataset: Dataset, codec: Codec, options: TrainingOptions, seed: int, conditions: Sequence[str] = ()
    ) -> None:
        picture = len(dataset.shape) == 3
        require(picture or not options.flip, "training.flip", options.flip, f"False, for {dataset.noun} have no mirror")
        self._dataset, self._codec, self._options, self._seed = dataset, codec, options, seed
        self._conditions = {name: dataset.conditions[name][0] for name in conditions}

    def __call__(self, step: int, noise: NoiseStream) -> tuple[Examples, Tensor]:
        options = self._options
        x, indices = train_batch(self._dataset.train, options.batch_size, self._seed, step)
        z, _ = self._codec.encode(x, noise)
        if options.flip:
            mirrored = column(noise.uniform(1, z.device), z) < 0.5
            z = z.flip(-1).where(mirrored, z)
        given = {name: values[indices] for name, values in self._conditions.items()}
        if "classes" in given and options.label_dropout:
            dropped = noise.uniform(1)[:, 0] < options.label_dropout
            none = torch.full_like(given["classes"], self._dataset.num_classes)
            given["classes"] = none.where(dropped, given["classes"])
        return Examples(z, given), indices

"""Train the two small feature networks that ship with the package, and write down how well they classify.

    python benchmarks/train_extractors.py --fashion_root=FOLDER

Each is trained on the training split of its data set alone, with random shifts by a pixel, and tested on the test
split. Writes `sde_diffusion/evaluation/weights/{digits,fashion}.safetensors` and `benchmarks/train_extractors.json`.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sde_diffusion.codecs.grey_levels import to_uint8
from sde_diffusion.data import DATASETS, random_split
from sde_diffusion.evaluation.extractors import WEIGHTS, Classifier
from sde_diffusion.files import provenance, write_atomically, write_json
from sde_diffusion.terminal import progress

Splits = tuple[Tensor, Tensor, Tensor, Tensor]


def digits() -> Splits:
    """Images as 8-bit pictures and labels of both splits, as the data set `digits` splits them."""
    data = load_digits()
    dataset = DATASETS.build("digits")
    labels = torch.from_numpy(data.target)
    train, test = random_split(len(labels), len(dataset.test))
    levels = dataset.levels or 0
    images = to_uint8(torch.from_numpy(data.images).to(torch.uint8)[:, None], levels)
    if not torch.equal(images[test], to_uint8(dataset.test, levels)):
        raise RuntimeError("the splits are not those of the data set")
    return images[train], labels[train], images[test], labels[test]


def fashion(root: str) -> Splits:
    """The same of Fashion-MNIST; labels from the files beside the images."""
    dataset = DATASETS.build("fashion_mnist", root=root)
    found = []
    for part, images in (("train", dataset.train), ("t10k", dataset.test)):
        path = next(Path(root).rglob(f"{part}-labels-idx1-ubyte*"))
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found += [images, torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=8).astype(np.int64))]
    train, train_labels, test, test_labels = found
    return train, train_labels, test, test_labels


def train(data: Splits, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """Train a classifier; returns it and its accuracy on the test split."""
    images, labels, test_images, test_labels = data
    torch.manual_seed(seed)
    net = Classifier(images.shape[-1]).to(memory_format=torch.channels_last)
    steps = epochs * (len(images) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    bar = progress(steps, "step", f"{images.shape[-1]}×{images.shape[-1]}")
    for _ in range(steps):
        bar.update()
        chosen = torch.randint(len(images), (64,))
        dy, dx = (int(v) for v in torch.randint(-1, 2, (2,)))
        batch = images[chosen].roll((dy, dx), dims=(2, 3))
        loss = F.cross_entropy(net(batch)[1], labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    bar.close()
    net.eval()
    with torch.no_grad():
        right = torch.cat([net(part)[1].argmax(dim=1) for part in test_images.split(500)]) == test_labels
    return net, float(right.double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in feature extractors.")
    parser.add_argument("--fashion_root", required=True, help="folder of Fashion-MNIST")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for name, data, epochs in (("digits", digits(), 60), ("fashion", fashion(options.fashion_root), 4)):
        net, accuracy = train(data, epochs, options.seed)
        state = {key: value.contiguous() for key, value in net.state_dict().items()}
        path = WEIGHTS / f"{name}.safetensors"
        write_atomically(path, lambda p, state=state: save_file(state, p))
        result[name] = {"test_accuracy": accuracy, "epochs": epochs, "bytes": path.stat().st_size}
        print(name, json.dumps(result[name]))
    write_json(Path(__file__).with_suffix(".json"), {"made_by": provenance(seed=options.seed), "extractors": result})


if __name__ == "__main__":
    main()

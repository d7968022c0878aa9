"""Every kind of file that can be handed in, spoilt in every way we know of: read, or refused in one line, at once.

A case is a good file, a way to spoil it, and the command that reads it, run in this process: it must return 0 or 2,
with no traceback, in seconds.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sde_diffusion.commands.main import main
from sde_diffusion.config import build_network, default_config
from sde_diffusion.records import SEAL
from sde_diffusion.stored_config import chosen
from tests.test_damage import BENCHMARK, LIKELIHOOD
from tests.test_full_disk import room_for
from tests.test_score_sde import write
from tests.test_training import SMALL, train
from tests.test_unet2d import random_model, saved

SECONDS = 30
"""Most time for a case; the slowest takes two."""

SAMPLE = ["sample", "--workdir={run}", "--steps=1", "--num_samples=1", "--device=cpu", "--quiet"]
CONVERT = ["convert", "--workdir={new}", "--quiet"]
SCORE = ["likelihood", "--workdir={run}", *LIKELIHOOD]
PICTURES = [
    *("train", "--workdir={new}", *SMALL, "--config.training.num_steps=1", "--config.data.name=image_folder"),
    *("--config.data.image_folder.image_size=8", "--config.data.root={file.parent}"),
]
READERS: dict[str, list[str]] = {
    "run/config.json": SAMPLE,
    "run/checkpoints/step_00000002/state.json": SAMPLE,
    "run/checkpoints/step_00000002/ema.safetensors": SAMPLE,
    "run/likelihood.npz": SCORE,
    "run/likelihood.json": ["report", "--workdir={run}", "--quiet"],
    "run/benchmark.jsonl": ["report", "--workdir={run}", "--quiet"],
    "run/train.jsonl": ["report", "--workdir={run}", "--quiet"],
    "pipeline/model_index.json": [*CONVERT, "--source={world}/pipeline"],
    "pipeline/unet/config.json": [*CONVERT, "--source={world}/pipeline"],
    "pipeline/scheduler/scheduler_config.json": [*CONVERT, "--source={world}/pipeline"],
    "pipeline/unet/diffusion_pytorch_model.safetensors": [*CONVERT, "--source={world}/pipeline"],
    "score/ddpm.json": [*CONVERT, "--source={world}/score/ddpm.pth"],
    "score/ddpm.pth": [*CONVERT, "--source={file}"],
    "score/old.pth": [*CONVERT, "--source={file}"],
    "weights/net.pt": [*CONVERT, "--source={file}", "--config={world}/configs/a.json"],
    "weights/net.safetensors": [*CONVERT, "--source={file}", "--config={world}/configs/a.json"],
    "configs/a.json": [*CONVERT, "--source={world}/weights/net.pt", "--config={file}"],
    "configs/a.yaml": [*CONVERT, "--source={world}/weights/net.pt", "--config={file}"],
    "configs/a.py": [*CONVERT, "--source={world}/weights/net.pt", "--config={file}"],
    "configs/mine.py": ["samplers", "--plugins={file}"],
    "data/rows.npz": [*SCORE, "--data={file}"],
    "data/conditions.npz": [*SAMPLE, "--conditions={file}"],
    "data/picture.png": [*SCORE, "--image={file}"],
    **dict.fromkeys([f"pictures/{kind}.{kind}" for kind in ("png", "jpg", "gif", "tif", "webp", "bmp")], PICTURES),
}
"""Kinds of files, each with the command that reads it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A good file of every kind."""
    pytest.importorskip("diffusers")
    world = tmp_path_factory.mktemp("world")
    for name in ("score", "weights", "configs", "data", "pictures"):
        (world / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(world / "cache"))
        assert train(world / "run", "--config.training.num_steps=2") == 0
        assert main(["likelihood", f"--workdir={world / 'run'}", *LIKELIHOOD]) == 0
        assert main(["benchmark", f"--workdir={world / 'run'}", *BENCHMARK]) == 0
        saved(world / "pipeline", random_model())
        old = world / "score" / write(world / "score", "ddpm").with_name("old.pth")
        torch.save(
            torch.load(world / "score" / "ddpm.pth", weights_only=False), old, _use_new_zipfile_serialization=False
        )
        shutil.copy(world / "score" / "ddpm.json", old.with_suffix(".json"))
        config = default_config()
        weights = build_network(config, (1, 8, 8)).state_dict()
        torch.save(weights, world / "weights" / "net.pt")
        save_file({k: v.contiguous() for k, v in weights.items()}, world / "weights" / "net.safetensors")
        stored = chosen(config)
        (world / "configs" / "a.json").write_text(json.dumps(stored))
        (world / "configs" / "a.yaml").write_text("\n".join(f"{key}: {json.dumps(v)}" for key, v in stored.items()))
        source = "from sde_diffusion.config import default_config as get_config\n"
        for name in ("a", "mine"):
            (world / "configs" / f"{name}.py").write_text(source)
        draw = np.random.default_rng(0)
        np.savez(world / "data" / "rows.npz", x=draw.integers(17, size=(2, 1, 8, 8), dtype=np.uint8))
        np.savez(world / "data" / "conditions.npz", scale=draw.normal(size=(1, 3)))
        Image.fromarray(draw.integers(256, size=(8, 8), dtype=np.uint8)).save(world / "data" / "picture.png")
        for kind in ("png", "jpg", "gif", "tif", "webp", "bmp"):
            Image.fromarray(draw.integers(256, size=(9, 8, 3), dtype=np.uint8)).save(
                world / "pictures" / f"{kind}.{kind}"
            )
        yield world


@contextmanager
def in_time() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(world: Path, name: str) -> int:
    """Run the command that reads a file."""
    places = {"world": world, "file": world / name, "run": world / "run", "new": world / "new"}
    with in_time():
        return main([part.format(**places) for part in READERS[name]])


# --- ways to spoil a file -------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    *(None, True, -1, 0, 10**9, 10**18, 10**30, 1.5, -1e300, float("nan"), float("inf")),
    *("", "x", "\udcff\n\0", "é" * 5000, [], [None], [10**9] * 3, {}, {"name": "x"}, {"x": {"y": [1, {}]}}),
]
"""What takes the place of a value of JSON."""


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in JSON."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(inner for key, value in parts for inner in places(value, (*path, key)))]


def another_value(content: bytes, draw: random.Random) -> bytes:
    """One value of JSON, or of the first line of many, replaced; its SHA-256 is taken out, as by who changes it."""
    first, *rest = content.split(b"\n") if content.startswith(b'{"') and content.count(b"\n{") else [content]
    told = json.loads(first)
    told.pop(SEAL, None)
    path = draw.choice(places(told))
    value = copy.deepcopy(draw.choice(VALUES))
    if not path:
        told = value
    else:
        node = told
        for key in path[:-1]:
            node = node[key]
        if draw.random() < 0.1:
            del node[path[-1]]
        else:
            node[path[-1]] = value
    return b"\n".join([json.dumps(told).encode(), *rest])


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Some bits, most of them in the first bytes, where headers are."""
    found = bytearray(content)
    for _ in range(draw.choice([1, 3, 30])):
        end = draw.choice([min(300, len(found)), len(found)])
        found[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(found)


def overwritten(content: bytes, draw: random.Random) -> bytes:
    """A stretch of other bytes."""
    start = draw.randrange(len(content))
    length = draw.choice([4, 8, 50])
    byte = draw.choice([b"\0", b"\xff", b"[", b"(", b"9", b"{"])
    return content[:start] + byte * length + content[start + length :]


SPOIL: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": truncated,
    "flipped": flipped,
    "overwritten": overwritten,
    "another value": another_value,
}


def problems(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, way: str, count: int) -> str:
    """Spoil a file so often; returns what went wrong, a line each."""
    found = []
    for i in range(count):
        other = tmp_path / f"{i}"
        needed = {name.partition("/")[0], "weights", "configs", *(["run"] if "{run}" in str(READERS[name]) else [])}
        for part in needed:
            shutil.copytree(world / part, other / part)
        path = other / name
        path.write_bytes(SPOIL[way](path.read_bytes(), random.Random(f"{name} {way} {i}")))
        capsys.readouterr()
        try:
            code = run(other, name)
        except Exception as error:
            found.append(f"{i}: {type(error).__name__}: {error}")
        else:
            said = capsys.readouterr().err
            good = code == 0 or (code == 2 and said.startswith("sde-diffusion: "))
            found += [] if good else [f"{i}: exit code {code}: {said}"]
        shutil.rmtree(other)
    return "\n".join(found)


WAYS = [(name, way) for name in READERS for way in SPOIL if way != "another value" or "json" in Path(name).suffix]


@pytest.mark.parametrize("name", READERS)
def test_a_spoilt_file_is_read_or_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """In one way, which is another for each; all of them are below."""
    ways = [way for other, way in WAYS if other == name]
    way = ways[list(READERS).index(name) % len(ways)]
    assert not problems(world, tmp_path, capsys, name, way, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_many_spoilt_files_are_read_or_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, way: str
) -> None:
    assert not problems(world, tmp_path, capsys, name, way, 20 if way == "another value" else 8)


# --- what is no file, and what claims to be more than it is -----------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nothing(path: Path) -> None:
    path.symlink_to(path)


def empty(path: Path) -> None:
    path.touch()


NO_FILES = [empty, nothing, Path.mkdir]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links are those of POSIX")
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Nothing waits for a pipe that nobody writes to, or reads a device without end."""
    made = name.startswith("run/") and not name.endswith(("config.json", "state.json", "tensors"))
    free = made or name.startswith("pictures/") or name.endswith("mine.py")  # it may be empty, not there, or a folder
    other = NO_FILES[list(READERS).index(name) % len(NO_FILES)]
    for make in [pipe, device, *([] if free else [other])]:
        folder = tmp_path / make.__name__
        shutil.copytree(world, folder, ignore=shutil.ignore_patterns("cache"))
        if name == "run/config.json":
            shutil.rmtree(folder / "run" / "checkpoints")  # where there is a copy of it
        (folder / name).unlink()
        make(folder / name)
        capsys.readouterr()
        assert run(folder, name) == 2, f"{name} as {make.__name__}"
        text = capsys.readouterr().err
        assert text.startswith("sde-diffusion: ")
        assert "Traceback" not in text


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith((".json", ".yaml", ".jsonl"))])
@pytest.mark.parametrize("depth", [60, 100_000])
def test_nesting_without_end_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, depth: int
) -> None:
    shutil.copytree(world, tmp_path / "w", ignore=shutil.ignore_patterns("cache"))
    (tmp_path / "w" / name).write_text(nested(depth) + "\n")
    capsys.readouterr()
    code = run(tmp_path / "w", name)
    text = capsys.readouterr().err
    good = code == 2 or (code == 0 and "is used instead" in text)  # of config.json there is a copy
    assert good, text
    assert all(line.startswith("sde-diffusion: ") for line in text.splitlines())


def test_aliases_of_yaml_are_counted(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A billion values in ten lines, and one that contains itself."""
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]
    for text in ("\n".join(lines), "a: &a [*a, *a]"):
        (tmp_path / "c.yaml").write_text(text)
        with in_time():
            assert main(["train", f"--workdir={tmp_path / 'run'}", f"--config={tmp_path / 'c.yaml'}"]) == 2
        said = capsys.readouterr().err
        assert "repeats itself" in said or "nested deeper" in said
    (tmp_path / "c.yaml").write_text("a: 1\n" * 300_000)
    assert main(["train", f"--workdir={tmp_path / 'run'}", f"--config={tmp_path / 'c.yaml'}"]) == 2
    assert "at most 1,048,576 bytes" in capsys.readouterr().err


def claiming(path: Path, shape: tuple[int, ...], content: bytes = b"") -> None:
    """Write an archive of one array, whose header claims a shape."""
    header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content)


def test_sizes_that_are_claimed_take_no_memory(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """10¹² elements in an array, 2⁶⁰ bytes in a header, an archive that unfolds to more than there is."""

    def line(name: str, *arguments: str) -> str:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        capsys.readouterr()
        with in_time():
            assert main([part.format(run=world / "run", new=tmp_path / "new", name=name) for part in arguments]) == 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    rows = tmp_path / "rows.npz"
    claiming(rows, (10**12,))
    assert "x.npy has 8000000000000 bytes by its header, not 0" in line(str(rows), *SCORE, "--data={name}")
    assert "bytes by its header, not 0" in line(str(rows), *SAMPLE, "--conditions={name}")
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with_config = [*CONVERT, "--source={name}", f"--config={world / 'configs' / 'a.json'}"]
    assert "not a readable safetensors file" in line(str(weights), *with_config)
    monkeypatch.setattr("sde_diffusion.memory.available", lambda device="cpu": 1e6)
    for name, arguments in ((rows, [*SCORE, "--data={name}"]), (tmp_path / "net.pt", with_config)):
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data.pkl", bytes(2_000_000))
        assert "expected what fits" in line(str(name), *arguments)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("unet/config.json", "layers_per_block", 10**9, "at most 10,000 tensors in it"),
        ("unet/config.json", "block_out_channels", [10**9, 10**9], "make it smaller"),
        ("unet/config.json", "block_out_channels", [8] * 40, "give fewer widths"),
        ("unet/config.json", "num_class_embeds", 10**15, "expected what fits"),
        ("unet/config.json", "layers_per_block", 10**30, "below 2^63"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12, "at most 1,000,000 steps"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**30, "below 2^63"),
    ],
)
def test_a_description_of_something_huge(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, key: str, value: Any, message: str
) -> None:
    path = Path(shutil.copytree(world / "pipeline", tmp_path / "pipeline")) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    capsys.readouterr()
    with in_time():
        assert main(["convert", f"--source={tmp_path / 'pipeline'}", f"--workdir={tmp_path / 'new'}"]) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1


def test_names_with_a_nul(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They cannot be on a command line, but in a configuration."""
    for name in ("npz", "image_folder"):
        content = {"data": {"name": name, "root": "a\0b"}, "plugins": []}
        (tmp_path / "c.json").write_text(json.dumps(content))
        assert main(["train", f"--workdir={tmp_path / 'run'}", f"--config={tmp_path / 'c.json'}"]) == 2
        assert r"a\x00b" in capsys.readouterr().err
    (tmp_path / "c.json").write_text(json.dumps({"plugins": ["a\0b.py"]}))
    assert main(["train", f"--workdir={tmp_path / 'run'}", f"--config={tmp_path / 'c.json'}"]) == 2


def test_files_that_may_not_be_read(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for anyone but the owner: whoever opens them is refused."""
    read = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name in ("config.json", "a.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    for name in ("run/config.json", "configs/a.json", "pipeline/unet/config.json"):
        assert run(world, name) == 2
        text = capsys.readouterr().err
        assert text == f"sde-diffusion: {world / name}: Permission denied; give another path\n"


def test_a_shipped_run_on_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with room_for(10_000):
        assert main(["sample", "--pretrained=fashion_mnist", "--steps=1", "--num_samples=1", "--quiet"]) == 1
    text = capsys.readouterr().err
    assert "File too large; nothing is left half-written" in text
    assert text.count("\n") == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))

"""What can go wrong with files, and with processes that share them: nothing is lost, nothing is silent."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.evaluation.sweep import append_row, picture_of, read_rows
from sde_diffusion.files import UNFINISHED, new_folder, sha256, write_atomically
from sde_diffusion.locks import one_writer
from sde_diffusion.records import as_line, read_record, sealed, write_record
from sde_diffusion.training import checkpoints
from tests.test_commands import refused
from tests.test_sweep import row
from tests.test_training import SMALL, draw_of, train

BENCHMARK = ["--samplers=ddim", "--steps=2", "--num_samples=70", "--quiet", "--device=cpu"]
LIKELIHOOD = ["--num_images=3", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5", "--quiet", "--device=cpu"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with two checkpoints, a sweep, a likelihood and samples."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        flags = ["--config.training.num_steps=4", "--config.training.checkpoint_every=2"]
        assert train(workdir, *flags) == 0
        assert main(["benchmark", f"--workdir={workdir}", *BENCHMARK]) == 0
        assert main(["likelihood", f"--workdir={workdir}", *LIKELIHOOD]) == 0
        assert main(["sample", f"--workdir={workdir}", "--steps=2", "--num_samples=2", "--quiet"]) == 0
        yield workdir


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_rows(run: Path, **fields: Any) -> None:
    rows = [{**r, **fields} for r in read_rows(run / "benchmark.jsonl")]
    (run / "benchmark.jsonl").write_text("".join(as_line(r) for r in rows))


# --- names in records ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["picture", "sampler"])
@pytest.mark.parametrize("name", ["../../precious", "{tmp}/precious", "..", "", ".", "a/b", "a\\b", 7, None])
def test_a_name_in_a_record_is_no_path(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, name: Any
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "only copy.txt").write_text("mine")
    (tmp_path / "precious.png").write_bytes(draw_of(run, "ddim_2_n2_seed0", ".png").read_bytes())
    edit_rows(run, **{field: name.format(tmp=tmp_path) if isinstance(name, str) else name})
    before = contents(tmp_path)
    for command in (["benchmark", *BENCHMARK], ["report"]):
        text = refused(capsys, command[0], f"--workdir={run}", *command[1:])
        assert f"benchmark.jsonl: line 1 is not a row of a sweep ({field}=" in text
    assert contents(tmp_path) == before


def test_pictures_are_found_by_what_the_row_is_of(run: Path) -> None:
    """A plain name that an earlier version noted is not followed either."""
    edit_rows(run, picture="another")
    (run / "benchmark" / "another").mkdir()
    (run / "benchmark" / "another" / "notes.txt").write_text("mine")
    assert main(["benchmark", f"--workdir={run}", *BENCHMARK]) == 0
    assert (run / "benchmark" / "another" / "notes.txt").read_text() == "mine"
    [only] = read_rows(run / "benchmark.jsonl")
    assert (run / "benchmark" / f"{picture_of(only)}.png").exists()
    assert main(["report", f"--workdir={run}", "--quiet"]) == 0
    assert 'alt="samples of ddim' in (run / "report.html").read_text()


@pytest.mark.parametrize("field", [f for f in row() if f not in ("nfe", "estimator")] + ["nfe"])
def test_a_row_without_a_key_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], field: str) -> None:
    [only] = read_rows(run / "benchmark.jsonl")
    (run / "benchmark.jsonl").write_text(as_line({k: v for k, v in only.items() if k != field}))
    for command in (["benchmark", *BENCHMARK], ["report"]):
        assert f"line 1 is not a row of a sweep ({field}=" in refused(
            capsys, command[0], f"--workdir={run}", *command[1:]
        )


def test_names_of_parts_are_plain() -> None:
    import samplers

    for name in ("../x", "a/b", "", ".hidden", "a b"):
        with pytest.raises(sd.InputError, match="sampler="):
            samplers.register(name)(samplers.DDIM)


# --- tensors from files -------------------------------------------------------------------------------------------

Tensors = dict[str, torch.Tensor]


def one_entry(t: Tensors) -> None:
    t["0.exp_avg"] = torch.zeros(1)


def int8(t: Tensors) -> None:
    t["0.exp_avg"] = t["0.exp_avg"].to(torch.int8)


def missing(t: Tensors) -> None:
    del t["1.exp_avg_sq"]


def missing_index(t: Tensors) -> None:
    for name in ("step", "exp_avg", "exp_avg_sq"):
        del t[f"2.{name}"]


def odd_index(t: Tensors) -> None:
    t["one.exp_avg"] = t.pop("1.exp_avg")


def beyond(t: Tensors) -> None:
    t["9999.exp_avg"] = torch.zeros(3)


def negative(t: Tensors) -> None:
    t["-1.exp_avg"] = torch.zeros(3)


def whole_steps(t: Tensors) -> None:
    t["0.step"] = t["0.step"].long()


def integer(t: Tensors) -> None:
    key = next(iter(t))
    t[key] = t[key].to(torch.int32)


def half(t: Tensors) -> None:
    key = next(iter(t))
    t[key] = t[key].half()


def flat(t: Tensors) -> None:
    key = next(iter(t))
    t[key] = t[key].flatten()[:1]


def renamed(t: Tensors) -> None:
    key = next(iter(t))
    t["module." + key] = t.pop(key)


@pytest.mark.parametrize("checked", [True, False], ids=["hashed", "of an earlier version"])
@pytest.mark.parametrize(
    ("name", "harm"),
    [("optimizer", h) for h in (one_entry, int8, missing, missing_index, odd_index, beyond, negative, whole_steps)]
    + [(n, h) for n in ("network", "ema") for h in (integer, half, flat, renamed)],
)
def test_tensors_are_checked_before_they_are_used(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, harm: Callable[[Tensors], None], checked: bool
) -> None:
    """Those that a file names with a good SHA-256 too: it is no proof of fitting."""
    for folder in checkpoints.existing(run):
        path, state = folder / f"{name}.safetensors", read_record(folder / "state.json")
        tensors = load_file(path)
        harm(tensors)
        save_file(tensors, path)
        state["files"][name] = sha256(path)
        write_record(
            folder / "state.json", state if checked else {k: v for k, v in state.items() if k not in ("files", "idle")}
        )
    before = contents(run / "checkpoints")
    capsys.readouterr()
    assert main(["train", f"--workdir={run}", *SMALL, "--config.training.num_steps=6"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (1 if checked else 2), "of an earlier version: one line more says that it is not hashed"
    assert f"{name}.safetensors: does not fit the" in lines[-1]
    assert contents(run / "checkpoints") == before


def test_checkpoints_of_an_earlier_version_load_with_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in checkpoints.existing(run):
        state = read_record(folder / "state.json")
        facts = {k: state[k] for k in ("format", "step", "ema_updates", "provenance")}
        (folder / "state.json").write_text(json.dumps(facts))
    (run / "config.json").write_text(json.dumps(read_record(run / "config.json")))
    capsys.readouterr()
    assert main(["sample", f"--workdir={run}", "--steps=2", "--num_samples=2", "--quiet"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert "has no SHA-256 of its files" in line
    assert train(run, "--config.training.num_steps=6") == 0
    capsys.readouterr()
    assert main(["sample", f"--workdir={run}", "--steps=2", "--num_samples=2", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("harm", ["names", "shape", "dtype", "done"])
def test_scores_that_are_continued_are_checked(run: Path, capsys: pytest.CaptureFixture[str], harm: str) -> None:
    path = run / "likelihood.npz"
    with np.load(path) as content:
        arrays: dict[str, Any] = dict(content)
    if harm == "names":
        del arrays["log_p_ode_nats"]
    elif harm == "shape":
        arrays["log_p_ode_nats"] = arrays["log_p_ode_nats"][:, :1]
    elif harm == "dtype":
        arrays["log_p_ode_nats"] = arrays["log_p_ode_nats"].astype(np.int64)
    else:
        arrays["done"] = np.array(99)
    np.savez(path, **arrays)
    text = refused(capsys, "likelihood", f"--workdir={run}", *LIKELIHOOD)
    assert f"likelihood.npz: {'done' if harm == 'done' else 'log_p_ode_nats'}=" in text


# --- bit rot ------------------------------------------------------------------------------------------------------

FLIPS = 60
RECORDS = ["benchmark.jsonl", "likelihood.json", "likelihood.npz", "train.jsonl"]


def flip_a_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def draws(run: Path) -> int:
    return main(["sample", f"--workdir={run}", f"--out={run / 'drawn'}", "--steps=2", "--num_samples=2", "--quiet"])


def drawn(run: Path) -> np.ndarray:
    return np.asarray(np.load(run / "drawn" / "samples.npz")["x"])


def test_a_flipped_bit_is_never_silent(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any file of the newest checkpoint or in the configuration: the one before, or the copy, is used and named."""
    draw = random.Random(0)
    before, newest = checkpoints.existing(whole)
    rest = [f"step_00000004/{name}" for name in ("ema.safetensors", "network.safetensors", "optimizer.safetensors")]
    names = [*(f"checkpoints/{name}" for name in (*rest, "step_00000004/state.json")), "config.json"]
    sample_of = {}
    for folder in (before, newest):
        run = Path(shutil.copytree(whole, tmp_path / folder.name))
        if folder is before:
            shutil.rmtree(run / "checkpoints" / newest.name)
        assert draws(run) == 0
        sample_of[folder.name] = drawn(run)
    silent, harmless = [], 0
    for i in range(FLIPS):
        run, name = Path(shutil.copytree(whole, tmp_path / f"flip{i}")), names[i % len(names)]
        flip_a_bit(run / name, draw)
        capsys.readouterr()
        if "network" in name or "optimizer" in name:  # what only a training reads
            code = train(run, "--config.training.num_steps=5")
            said = capsys.readouterr().err
            assert code == 0, said
            assert "step_00000002 is used instead" in said
            assert [p.name for p in checkpoints.existing(run)] == ["step_00000004", "step_00000005"]
            again, first = (f / "checkpoints" / "step_00000004" / "ema.safetensors" for f in (run, whole))
            assert again.read_bytes() == first.read_bytes()  # trained again, bit for bit
            assert (run / "checkpoints" / "damaged_step_00000004").is_dir()
        else:
            code = draws(run)
            said = capsys.readouterr().err
            used = "step_00000002" if "step_00000002 is used" in said else "step_00000004"
            assert code == 0, said
            assert np.array_equal(drawn(run), sample_of[used])
            if not said:  # white space, or a digit beyond a number's precision: all that is read is as it was
                silent.append(name)
                assert json.loads((run / name).read_text()).keys() >= {"provenance"}
                harmless += 1
        shutil.rmtree(run)
    assert harmless <= FLIPS // 10, silent


def test_a_flipped_bit_in_a_record_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(1)
    assert main(["report", f"--workdir={run}", "--quiet"]) == 0
    page = without_time((run / "report.html").read_text())
    for i in range(FLIPS // 2):
        other = Path(shutil.copytree(run, tmp_path / f"{i}" / "run"))
        name = RECORDS[i % len(RECORDS)]
        flip_a_bit(other / name, draw)
        command = ["likelihood", *LIKELIHOOD] if name.endswith(".npz") else ["report", "--quiet"]
        capsys.readouterr()
        code = main([command[0], f"--workdir={other}", *command[1:]])
        said = capsys.readouterr().err
        if code:
            assert code == 2
            assert name in said
            assert said.count("\n") == 1
        elif name.endswith(".npz"):
            assert {**read_record(other / "likelihood.json"), "provenance": 0} == {
                **read_record(run / "likelihood.json"),
                "provenance": 0,
            }
        else:  # white space, or the last line's end: what is read is as it was, or is less by a torn line
            same = without_time((other / "report.html").read_text()) == page
            assert same or (name in said and "is torn" in said)
        shutil.rmtree(other)


def without_time(page: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "", page)


# --- two writers, and readers -------------------------------------------------------------------------------------

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_sweep", "torch._dynamo", "torch.utils.tensorboard", "sklearn.datasets"])


def _command(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os._exit(main(arguments))


def start(output: Path, *arguments: str, **environment: str) -> BaseProcess:
    """Run a command in a process of its own; what it prints goes to ``output``."""
    process = FORKS.Process(target=_command, args=(list(arguments), output, environment))
    process.start()
    return process


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


LONG = ["--config.training.num_steps=100000", "--config.training.checkpoint_every=1", *SMALL]


def test_one_writer(tmp_path: Path) -> None:
    with one_writer(tmp_path / "run", "training"):
        held = pytest.raises(sd.InputError, match=f"training is being written by process {os.getpid()} on ")
        with held, one_writer(tmp_path / "run", "training"):
            pytest.fail("two writers")
        with one_writer(tmp_path / "run", "benchmark"):  # another record
            pass
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".training.lock").write_text("process 1 on a machine that was killed\n")
    with one_writer(tmp_path / "run", "training"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_two_trainings_and_a_killed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    first = start(tmp_path / "first", "train", f"--workdir={run}", *LONG)
    wait_for(lambda: checkpoints.existing(run))
    for command in (["train", *SMALL], ["tour", "--quiet"]):
        text = refused(capsys, command[0], f"--workdir={run}", *command[1:])
        assert f"its training is being written by process {first.pid}" in text
    assert "it holds a run already" in refused(capsys, "convert", f"--workdir={run}", f"--source={run}")
    assert "it holds something else" in refused(capsys, "sample", f"--workdir={run}", "--pretrained=fashion_mnist")
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    assert train(run, f"--config.training.num_steps={checkpoints.read(run).step + 1}") == 0
    assert not list(run.rglob(".*"))


def test_of_two_trainings_that_start_together_one_writes(tmp_path: Path) -> None:
    """20 races, alternately on a new and on a trained workdir; the one that loses says who has it."""
    flags = ["--config.training.checkpoint_every=1", *SMALL]
    for i in range(20):
        run = tmp_path / f"run{i // 2}"
        steps = f"--config.training.num_steps={4 * (i % 2 + 1)}"
        outputs = [tmp_path / f"{i}.{j}" for j in range(2)]
        both = [start(out, "train", f"--workdir={run}", steps, *flags) for out in outputs]
        for process in both:
            process.join()
        codes = sorted(process.exitcode or 0 for process in both)
        said = "".join(out.read_text() for out in outputs)
        assert codes in ([0, 0], [0, 2]), said  # one after the other, or one alone
        assert ("is being written by" in said) == (codes == [0, 2])
        logged = [json.loads(line)["step"] for line in (run / "train.jsonl").read_text().splitlines()]
        assert logged == sorted(set(logged))
        assert checkpoints.read(run).step == 4 * (i % 2 + 1)
        assert not list(run.rglob(".*"))


def test_two_benchmarks_leave_no_doubled_row(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--samplers=ddim,heun", "--steps=3,4", "--num_samples=70", "--quiet", "--device=cpu", "--batch_size=20"]
    outputs = [tmp_path / f"out{j}" for j in range(2)]
    cache = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    both = [start(out, "benchmark", f"--workdir={run}", *flags, **cache) for out in outputs]
    for process in both:
        process.join()
    assert 0 in [process.exitcode for process in both]
    rows = read_rows(run / "benchmark.jsonl")
    assert len({picture_of(r) for r in rows}) == len(rows) == 5
    append_row(run / "benchmark.jsonl", rows[-1])
    capsys.readouterr()
    assert read_rows(run / "benchmark.jsonl") == rows
    assert "1 of its 6 rows repeat another" in capsys.readouterr().err


def test_two_likelihoods(run: Path, tmp_path: Path) -> None:
    flags = [f for f in LIKELIHOOD if "num_images" not in f] + ["--num_images=20", "--batch_size=2"]
    outputs = [tmp_path / f"out{j}" for j in range(2)]
    both = [start(out, "likelihood", f"--workdir={run}", *flags) for out in outputs]
    for process in both:
        process.join()
    assert {process.exitcode for process in both} <= {0, 2}
    assert 0 in [process.exitcode for process in both]
    assert read_record(run / "likelihood.json")["provenance"]["num_examples"] == 20


def test_readers_follow_checkpoints_that_are_rotated_away(tmp_path: Path) -> None:
    """60 readings of a run that keeps one checkpoint and writes one every step."""
    run = tmp_path / "run"
    writer = start(tmp_path / "writer", "train", f"--workdir={run}", "--config.training.keep=1", *LONG)
    try:
        wait_for(lambda: checkpoints.existing(run))
        steps = [checkpoints.read(run, "network", "optimizer").step for _ in range(60)]
        assert main(["sample", f"--workdir={run}", "--steps=2", "--num_samples=2", "--quiet"]) == 0
        assert main(["report", f"--workdir={run}", "--quiet"]) == 0
    finally:
        writer.kill()
        writer.join()
    assert steps == sorted(steps)
    assert steps[-1] > steps[0], "the run did not go on meanwhile"


def test_several_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for command in ("train", "sample", "benchmark", "likelihood", "report", "convert", "tour"):
        text = refused(capsys, command, f"--workdir={tmp_path / 'run'}")
        assert "WORLD_SIZE='2': expected 1 process" in text
    assert list(tmp_path.iterdir()) == []


# --- kills --------------------------------------------------------------------------------------------------------


def test_kills_lose_nothing(tmp_path: Path) -> None:
    """40 kills at any moment of a training: what was there stays, whole, and nothing is left lying about."""
    draw, run = random.Random(2), tmp_path / "run"
    reached = 0
    for i in range(40):
        process = start(tmp_path / "out", "train", f"--workdir={run}", *LONG)
        wait_for(lambda: (run / "config.json").exists())
        if i % 4:
            wait_for(lambda: [int(p.name[5:]) for p in checkpoints.existing(run)][-1:] > [reached])  # noqa: B023
        if i % 2:  # in the midst of writing a checkpoint
            wait_for(lambda: list((run / "checkpoints").glob(f"{UNFINISHED}*")))
        else:
            time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        process.join()
        if checkpoints.existing(run):
            found = checkpoints.read(run, "network", "optimizer")
            assert found.tensors.keys() == {"ema", "network", "optimizer"}
            assert found.step >= reached
            reached = found.step
    assert reached > 0
    assert train(run, f"--config.training.num_steps={reached + 1}") == 0
    assert not list(run.rglob(".*"))
    assert len(checkpoints.existing(run)) == 2


@pytest.mark.parametrize("how", ["killed", "disk full"])
def test_a_convert_that_failed_blocks_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """At its last step, when all but one file is written."""
    from sde_diffusion.commands import convert

    target, whole = tmp_path / "there" / "converted", convert.write_settings

    def fail(*arguments: Any) -> None:
        if how == "killed":
            os._exit(9)
        raise OSError(28, "No space left on device", str(target))

    command = ["convert", f"--source={run}", f"--workdir={target}", "--quiet"]
    monkeypatch.setattr(convert, "write_settings", fail)
    if how == "killed":
        child = os.fork()
        if child == 0:
            main(command)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert [p.name[: len(UNFINISHED)] for p in target.parent.iterdir()] == [UNFINISHED]
    else:
        assert main(command) == 1
        assert list(target.parent.iterdir()) == []
    monkeypatch.setattr(convert, "write_settings", whole)
    assert main(command) == 0
    assert [p.name for p in target.parent.iterdir()] == ["converted"]
    assert checkpoints.read(target, "network", "optimizer").step == 4


# --- folders and permissions --------------------------------------------------------------------------------------


def test_only_numbered_folders_are_checkpoints(run: Path, tmp_path: Path) -> None:
    """Copies and archives of the person's are neither read, nor counted, nor deleted; numbers are ordered as such."""
    folder = run / "checkpoints"
    own = ["step_best", "step_00000004 (copy)", "step_4.bak", "old_step_00000001"]
    for name in own:
        shutil.copytree(folder / "step_00000004", folder / name)
    (folder / "step_00000009.tar.gz").write_bytes(b"archive")
    (folder / "step_00000011").write_bytes(b"a file")
    (folder / "step_00000004").rename(folder / "step_4")
    assert [p.name for p in checkpoints.existing(run)] == ["step_00000002", "step_4"]
    assert train(run, "--config.training.num_steps=12", "--config.training.checkpoint_every=1") == 2
    assert (folder / "step_00000011").read_bytes() == b"a file"
    (folder / "step_00000011").unlink()
    assert train(run, "--config.training.num_steps=12", "--config.training.checkpoint_every=1") == 0
    assert [p.name for p in checkpoints.existing(run)] == ["step_00000011", "step_00000012"]
    assert {p.name for p in folder.iterdir()} == {*own, "step_00000009.tar.gz", "step_00000011", "step_00000012"}
    numbers = tmp_path / "numbers"
    for n in (100_000_000, 99_999_999, 5):
        (numbers / "checkpoints" / f"step_{n:08d}").mkdir(parents=True)
    assert [p.name for p in checkpoints.existing(numbers)] == ["step_00000005", "step_99999999", "step_100000000"]


def test_files_have_the_ordinary_permissions(whole: Path, tmp_path: Path) -> None:
    """As those that ``open`` makes, for all files of a run, converted and unpacked ones too."""
    before = os.umask(0o027)
    try:
        run = tmp_path / "run"
        assert train(run, "--config.training.num_steps=2") == 0
        assert main(["benchmark", f"--workdir={run}", *BENCHMARK]) == 0
        assert main(["likelihood", f"--workdir={run}", *LIKELIHOOD]) == 0
        assert main(["sample", f"--workdir={run}", "--steps=2", "--num_samples=2", "--quiet", "--trajectory"]) == 0
        assert main(["report", f"--workdir={run}", "--quiet"]) == 0
        assert main(["convert", f"--source={run}", f"--workdir={tmp_path / 'converted'}", "--quiet"]) == 0
        assert main(["report", "--pretrained=fashion_mnist", f"--workdir={tmp_path / 'shipped'}", "--quiet"]) == 0
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tmp_path)): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file()}
    assert len(modes) > 30
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o640} == {}


def test_what_is_being_written_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / f"{UNFINISHED}left").mkdir()
    (tmp_path / f"{UNFINISHED}left.txt").write_text("by a killed process")
    with new_folder(tmp_path / "new") as part:
        assert list(tmp_path.iterdir()) == [part]
        write_atomically(tmp_path / "file", lambda p: p.write_text("1"))
        (part / "content").write_text("2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]
    with pytest.raises(sd.InputError, match="it holds something already"), new_folder(tmp_path / "new"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]


def test_seal(tmp_path: Path) -> None:
    content = {"a": [1.0, 0.1, float("nan")], "b": {"1": "é∞"}, "c": (1, 2)}
    write_record(tmp_path / "r.json", content)
    assert read_record(tmp_path / "r.json") == {"a": [1.0, 0.1, None], "b": {"1": "é∞"}, "c": [1, 2]}
    whole = sealed(content)
    seal = whole.pop("sha256")
    for broken in ({**whole, "c": [1, 3], "sha256": seal}, {**whole, "sha257": seal}):
        (tmp_path / "r.json").write_text(json.dumps(broken))
        with pytest.raises(sd.InputError, match="is not as it was written"):
            read_record(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(json.dumps({**whole, "c": [1, 3]}))  # changed by hand, and said so
    assert read_record(tmp_path / "r.json")["c"] == [1, 3]

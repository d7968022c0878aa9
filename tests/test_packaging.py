"""What an installed copy knows of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sde_diffusion.commit import NOTE, commit_of

ROOT = Path(__file__).resolve().parents[1]


def git(folder: Path, *command: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *settings, *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_says_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None  # no commit yet
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(tmp_path) == head
    (tmp_path / "new.py").write_text("")
    assert commit_of(tmp_path) == head + "+"


def test_an_installed_copy_notes_its_commit(tmp_path: Path) -> None:
    """What ``pip install .`` copies, imported from a folder that is no checkout."""
    commit = commit_of(ROOT)
    if commit is None:
        pytest.skip("the tests were not started from a checkout")
    build = [sys.executable, "setup.py", "-q", "build", f"--build-base={tmp_path}", f"--build-lib={tmp_path / 'lib'}"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "lib/sde_diffusion" / NOTE).read_text() == commit
    ask = "import runpy; print(runpy.run_path('lib/sde_diffusion/commit.py')['commit']())"
    found = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == commit

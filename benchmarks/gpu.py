"""One card in six minutes: the tests that need it, then training, likelihood and sampling in turns with `diffusers`.

    python benchmarks/gpu.py         # runs unattended; prints a table, writes benchmarks/gpu.json
    python benchmarks/gpu.py --dry   # the same in miniature on the CPU: shows that it runs, and measures nothing

Both sides have the same weights and precision. A part is a process of its own and has a share of the time, and what
the parts before it left: what fails is recorded with its error and the rest goes on, what would not fit is left out and
says so. After each part the JSON is whole. Without `diffusers` ours is measured alone, without `pytest` no test is run.

Host syncs are those that `torch.cuda.set_sync_debug_mode` warns of during one draw, one training of as many steps, one
likelihood. "compiled" is `torch.compile`, "graphs" the same with CUDA graphs, as `config.compile=True` takes it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from gpu_parts import DRY, EVALUATIONS, FULL, IMAGES, Row
from pairing import OURS, THEIRS, has_diffusers, save_both

from sde_diffusion.files import provenance, write_json

SHARES = {"tests": 0.3, "training": 0.2, "likelihood": 0.15, "sampling": 1.0}
"""Each part and the share of all time that it may take; the last has what is left."""
START = 15.0
"""Seconds that a part needs to start."""
SPARE = 15.0
"""Seconds kept for what comes before the first part is asked for and after the last: imports, the JSON, the table."""


def in_time(command: list[str], until: float, folder: Path) -> tuple[list[Row], Row]:
    """Run a command, which ends when its time does; returns the rows that it has written by then, and how it failed."""
    rows, left = folder / "rows.jsonl", until - time.monotonic()
    rows.write_text("", encoding="utf-8")
    log = open(folder / "log", "w+", encoding="utf-8")  # noqa: SIM115 (a pipe could fill)
    with (
        log,
        subprocess.Popen(
            [*command, "--rows", str(rows)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            code = process.wait(timeout=max(left, 0.0))
            failed: Row = {"error": f"ended with code {code}"} if code else {}
        except subprocess.TimeoutExpired:
            failed = {"left_out": f"the rest of it, for its {left:.0f} s were over"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # compilers and tests start processes of their own
        log.seek(0)
        last = log.read()[-1500:]
    whole = [line for line in rows.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole], {**failed, "output": last} if failed else {}


def run_part(part: str, until: float, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Run a part in a process of its own."""
    left = until - time.monotonic()
    if left < START:
        return [{"part": part, "left_out": f"{max(left, 0.0):.0f} s are left, and a part needs {START:.0f} to start"}]
    command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), "--part", part, "--until", str(until)]
    command += ["--folder", str(folder), "--device", options.device, *(["--dry"] if options.dry else [])]
    rows, failed = in_time(command, until, folder)
    return [*rows, *([{"part": part, **failed}] if failed else [])]


def table(rows: list[Row]) -> str:
    """Return the rows as a table: our rate and theirs, the ratio, waits of the host; or why there is none."""
    lines = ["| part | network | batch | steps | ours | ours a second | theirs | ours / theirs | syncs | beside |"]
    lines.append("|" + "---|" * 10)
    for row in rows:
        rates = row.get(IMAGES) or row.get(EVALUATIONS) or {}
        over = row.get("over_theirs")
        cells = [str(row.get(key, "")) for key in ("part", "network", "batch", "steps", "ours")]
        cells += [f"{rates[side]['median']:.4g}" if side in rates else "" for side in (OURS, THEIRS)]
        cells += [f"{over['median']:.2f} [{over['p5']:.2f}, {over['p95']:.2f}]" if over else ""]
        syncs = row.get("host_syncs")
        why = row.get("error") or row.get("left_out")
        cells += ["" if syncs is None else str(syncs)]
        cells += ["; ".join(filter(None, [row.get("outcome"), row.get("test"), why]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="One card in six minutes.")
    parser.add_argument("--dry", action="store_true", help="in miniature, on the CPU")
    parser.add_argument("--seconds", type=float, default=360.0, help="all that it may take")
    parser.add_argument("--output", type=Path, help="default: gpu.json beside the script; of a dry run none")
    options = parser.parse_args()
    size = DRY if options.dry else FULL
    output = options.output or (None if options.dry else Path(__file__).with_suffix(".json"))
    end = time.monotonic() + options.seconds - SPARE
    options.device = "cpu" if options.dry else "cuda"
    if not options.dry and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --dry runs in miniature on the CPU")
    rows: list[Row] = []
    if not has_diffusers():
        rows.append({"part": "all", "left_out": "theirs, for diffusers is not installed"})
    made_by = provenance(options.device, seconds=options.seconds, dry=options.dry)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, changes in size.networks.items():
            save_both(name, folder / name, seed=0, **changes)
        for part, share in SHARES.items():
            until = min(end, time.monotonic() + share * options.seconds)
            rows += run_part(part, until, folder, options)
            if output is not None:
                write_json(output, {"made_by": made_by, "rows": rows})
            print(f"{part}: {end - time.monotonic():.0f} s left", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

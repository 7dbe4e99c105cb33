"""Several processes train as one does."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples/distributed.py"


def losses(processes: int) -> tuple[list[float], int]:
    """The loss of each step, and the bytes that a process sends for a step."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, EXAMPLE, "--steps=12", "--batch=512", "--rank=4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(found) == 12
    return found, int(re.search(r"(\d+) bytes sent", done.stdout)[1])


def test_loss_curve():
    one, two = losses(1), losses(2)
    assert one[1] == 0 and two[1] > 0
    assert one[0] == pytest.approx(two[0], rel=1e-6)
    assert one[0][-1] < one[0][0]

"""The programs in the documentation run."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT


def programs(page: pathlib.Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def run(code: str, cwd: pathlib.Path) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme(tmp_path):
    pytest.importorskip("torch")
    (code,) = programs(ROOT / "README.md")
    assert len(code.splitlines()) < 15
    indices = re.findall(r"\d+", run(code, tmp_path).split("]")[0])
    assert len(indices) == 10


def test_blobs_and_conversions(tmp_path):
    blobs, ranker, conversions, *_ = programs(ROOT / "docs/python.md")
    run(blobs + ranker.replace("import", "# import"), ROOT)
    # A small table in place of the model: the content of a file decides what it is.
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype("f4")
    np.savez(tmp_path / "dlrm.npz", **{"emb.weight": rows})
    (tmp_path / "dlrm.npz").rename(tmp_path / "dlrm.pt")
    run("import ttrec\n" + conversions.replace('"25%"', '"95%"'), tmp_path)
    assert (tmp_path / "report.html").exists() and (tmp_path / "small.ttr").exists()

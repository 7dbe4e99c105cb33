"""Conversions, plans and comparisons, of files and of arrays in memory."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import random

import ttrec


def test_files_and_memory(golden, tmp_path):
    """A checkpoint in a file and in memory gives the blob that the command writes."""
    torch = pytest.importorskip("torch")
    path = golden / "dlrm_plain.pt"
    command = [sys.executable, "-m", "ttrec", "convert", path, "-o", tmp_path / "command.ttr"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("4 tables and a model, 443008 bytes\n")
    expected = (tmp_path / "command.ttr").read_bytes()
    written = ttrec.convert(path, out=tmp_path / "model.ttr", progress=False)
    assert written.path == tmp_path / "model.ttr" and written.to_bytes() == expected
    assert ttrec.convert(str(path), progress=False).to_bytes() == expected
    state = torch.load(path, weights_only=False)
    assert ttrec.convert(state, progress=False).to_bytes() == expected


def test_plan(tmp_path):
    # Two steps of a tensor train of rank 2.
    low = random(0).normal(size=(400, 2)) @ random(1).normal(size=(2, 16))
    source = {"item.weight": low.astype("f4"), "step": np.array(3), "note": "text"}
    plan = ttrec.plan(source, budget="30%", progress=False)
    assert plan.bytes <= 0.3 * plan.f32_bytes and plan.error < 1e-3
    (table,) = plan.tables
    assert table["name"] == "item.weight" and table["bytes"] <= plan.bytes and table["candidates"]
    blob = ttrec.convert(source, plan, progress=False)
    assert blob.nbytes == plan.bytes
    plan.save(tmp_path / "plan.toml")
    for spec in (tmp_path / "plan.toml", str(tmp_path / "plan.toml"), plan.toml):
        assert ttrec.convert(source, spec, progress=False).to_bytes() == blob.to_bytes()

    report = ttrec.compare(blob, source, plan, progress=False)
    found = blob["item.weight"].lookup(np.arange(400)).astype("f8")
    expected = np.linalg.norm(found - low) / np.linalg.norm(low)
    assert report["layers"] == []
    assert abs(report["tables"][0]["relative_error"] - expected) < 1e-6 + 1e-3 * expected


def test_comparison(golden):
    spec = golden / "fbtt_d3.toml"
    blob = ttrec.convert(golden / "fbtt_d3.safetensors", spec, progress=False)
    (table,) = ttrec.compare(blob, golden / "fbtt_d3.pt", spec, progress=False)["tables"]
    assert table["name"] == "item" and table["relative_error"] < 1e-6
    assert len(table["worst_rows"]) == 10
    other = spec.read_text().replace("item", "other")
    with pytest.raises(ttrec.ConvertError, match='table "item" of the blob is not in the spec'):
        ttrec.compare(blob, golden / "fbtt_d3.pt", other, progress=False)


def test_report(tmp_path):
    path, out = tmp_path / "model.ttr", tmp_path / "report.html"
    source = {"emb.weight": random(0).normal(size=(60, 4)).astype("f4")}
    ttrec.convert(source, out=path, progress=False)
    ttrec.report(path, source, out)
    assert out.read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(ttrec.ConvertError, match="cannot open"):
        ttrec.report(tmp_path / "no.ttr", source, out)


def test_types():
    """Each type of array, and names that files have trouble with."""
    torch = pytest.importorskip("torch")
    rows = random(2).normal(size=(30, 8)).astype("f2")
    expected = rows.astype("f4")
    names = ("file", "a.b", "emb/x", "Ü", "self")
    makers = (
        lambda x: x,
        lambda x: x.astype("f4"),
        lambda x: x.astype("f8"),
        np.asfortranarray,
        lambda x: torch.tensor(x, requires_grad=True),
    )
    source = {name: make(rows) for name, make in zip(names, makers)}
    source["bf16"] = torch.tensor(expected).bfloat16()
    spec = {"table": [{"tensor": name, "dtype": "f32"} for name in source]}
    blob = ttrec.convert(source, spec, progress=False)
    assert sorted(blob) == sorted(source)
    for name in names:
        assert np.array_equal(blob[name].lookup(np.arange(30)), expected)
    found = blob["bf16"].lookup(np.arange(30))
    assert np.array_equal(found, source["bf16"].float().numpy())


def test_notes_and_progress(caplog):
    table = {"t": random(0).normal(size=(300, 8)).astype("f4")}
    spec = {"table": [{"tensor": "t", "representation": "low-rank", "rank": 4}]}
    with caplog.at_level(logging.INFO, "ttrec"):
        ttrec.convert(table, spec)
    assert [r.message for r in caplog.records if "relative error" in r.message]


def test_interruption(tmp_path):
    """Ctrl-C ends a long conversion, and leaves no file."""
    code = """
import signal, sys, threading
import numpy as np, ttrec
rows = np.random.default_rng(0).normal(size=(200_000, 64)).astype("f4")
spec = {"table": [{"tensor": "t", "representation": "tt", "rank": 64}]}
# A process that a shell starts in the background ignores the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
try:
    ttrec.convert({"t": rows}, spec, sys.argv[1], progress=False)
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", code, tmp_path / "model.ttr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "interrupted\n" and not list(tmp_path.iterdir())


def test_command(tmp_path):
    def run(*args):
        command = [sys.executable, "-m", "ttrec", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    help_ = run("--help")
    assert help_.returncode == 0 and "Usage: ttrec <COMMAND>" in help_.stdout
    assert run("--version").stdout == f"ttrec {ttrec.__version__}\n"
    assert run("no").returncode == 2
    missing = run("inspect", "no.ttr")
    assert missing.returncode == 3 and missing.stderr.startswith("ttrec: no.ttr: cannot open")
    demo = run("demo")
    assert demo.returncode == 0 and "agree with FBTT" in demo.stdout


def test_interrupted_command():
    # It takes minutes.
    command = [sys.executable, "-m", "ttrec", "bench"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=30)
    assert process.returncode == 130 and message == "ttrec: interrupted\n"


def test_without_torch():
    """The package alone imports neither torch nor tqdm."""
    code = "import sys, ttrec; print([name for name in ('torch', 'tqdm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

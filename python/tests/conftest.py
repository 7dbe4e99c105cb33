"""Data of the tests: tables in numpy, and blobs of them."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import ttrec

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: Checkpoints of other programs, and what these programs compute.
GOLDEN = ROOT / "tools/cli/tests/golden"
BLOBS = ROOT / "tests/golden"


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    return GOLDEN


@pytest.fixture(scope="session")
def blobs() -> pathlib.Path:
    return BLOBS


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def tt_cores(
    rows: list[int], columns: list[int], ranks: list[int], seed: int = 0
) -> list[np.ndarray]:
    """Cores of p x r x q x r'."""
    bounds = [1, *ranks, 1]
    shapes = zip(rows, bounds, columns, bounds[1:])
    return [random(seed + k).normal(size=shape) for k, shape in enumerate(shapes)]


def tt_table(cores: list[np.ndarray], count: int) -> np.ndarray:
    """All rows in double precision, the first core most significant."""
    table = np.ones((1, 1, 1))
    for core in cores:
        table = np.einsum("icr,prqs->ipcqs", table, core)
        (i, p, c, q, s) = table.shape
        table = table.reshape(i * p, c * q, s)
    return table[:count, :, 0]


#: A dense table, and a tensor train, of as many rows and columns.
SHAPE = (500, 12)
FACTORS = ([8, 9, 7], [2, 2, 3], [5, 4])


@pytest.fixture(scope="session")
def tables() -> dict[str, np.ndarray]:
    """What the tables of `blob` hold, in double precision."""
    dense = random(1).normal(size=SHAPE).astype("f4").astype("f8")
    small = random(2).normal(size=(64, 12)).astype("f4").astype("f8")
    cores = [core.astype("f4") for core in tt_cores(*FACTORS)]
    tt = tt_table([core.astype("f8") for core in cores], SHAPE[0])
    hashed = small[np.arange(SHAPE[0]) % 64]
    return {"dense": dense, "hashed": hashed, "tt": tt}


@pytest.fixture(scope="session")
def blob(tables: dict[str, np.ndarray]) -> ttrec.Blob:
    cores = [core.astype("f4") for core in tt_cores(*FACTORS)]
    state = {f"tt.tt_cores.{k}": core.reshape(1, len(core), -1) for k, core in enumerate(cores)}
    state |= {"dense": tables["dense"], "small": tables["hashed"][:64]}
    rows = {"num_embeddings": SHAPE[0]}
    tt = {"name": "tt", "prefix": "tt.", "dialect": "fbtt", "column_factors": FACTORS[1], **rows}
    spec = [
        {"name": "dense", "tensor": "dense", "dtype": "f32"},
        {"name": "hashed", "tensor": "small", "index_map": "modulo", "dtype": "f32", **rows},
        tt,
    ]
    return ttrec.convert(state, {"table": spec}, progress=False)

"""A DLRM of Criteo Kaggle's size with random weights, for docs/benchmarks.md: what it costs to store its tables as tensor trains.

    pip install numpy safetensors
    python benches/kaggle.py DIRECTORY

Writes dense.safetensors (2.2 GB), tt.safetensors, whose seven largest tables are tensor trains of rank 32, in the row factors that
take fewest bytes, a spec for each, and
dense.npz and tt.npz: 8,192 samples with one index per table (Zipf 1.05, the most frequent rows scattered in dense tables, and first in
tensor trains, as each kind is trained).
"""

import os
import sys

import numpy as np
from safetensors.numpy import save_file

ROWS = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652, 2173, 4,
        7046547, 18, 15, 286181, 105, 142572)
TENSOR_TRAINS = (10131227, 8351593, 7046547, 5461306, 2202608, 286181, 142572)
COLUMN_FACTORS, RANK = (2, 2, 4), 32
DIM, BOTTOM, TOP = 16, (13, 512, 256, 64, 16), (512, 256, 1)


def row_factors(rows):
    """Those whose cores take fewest bytes as i8, with a scale per slice. A slice of the middle core is RANK times as large as the
    others', so that it gets few of them: which is also what fits a cache."""
    q = COLUMN_FACTORS
    first, middle, last = (n + 4 for n in (q[0] * RANK, RANK * q[1] * RANK, RANK * q[2]))
    best = {}
    for b in range(1, 100):
        a = np.arange(1, 5000)
        c = -(-rows // (a * b))
        total = first * a + middle * b + last * c
        at = total.argmin()
        best[total[at]] = (int(a[at]), b, int(c[at]))
    return best[min(best)]


def layers(rng):
    """Both perceptrons by DLRM's names and in its shapes."""
    vectors = len(ROWS) + 1
    tensors = {}
    for name, sizes in (("bot_l", BOTTOM), ("top_l", (DIM + vectors * (vectors - 1) // 2, *TOP))):
        for at, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
            weight = rng.normal(0, np.sqrt(2 / (inputs + outputs)), (outputs, inputs))
            tensors[f"{name}.{2 * at}.weight"] = weight.astype(np.float32)
            tensors[f"{name}.{2 * at}.bias"] = rng.normal(0, np.sqrt(1 / outputs), outputs).astype(np.float32)
    return tensors


def table(rng, rows):
    return rng.random((rows, DIM), np.float32) - np.float32(0.5)


def draw(rng, rows, count, scattered):
    exponent = 1 - 1.05
    ranks = ((rng.random(count) * (rows**exponent - 1) + 1) ** (1 / exponent)).astype(np.int64) - 1
    ranks = np.clip(ranks, 0, rows - 1)
    return ranks * 2_654_435_761 % rows if scattered else ranks


def write_samples(path, dense, indices, **more):
    """`indices`, one per table and sample, as `ttrec score` takes them."""
    samples = len(dense)
    bags = {f"indices_{t}": indices[t] for t in range(len(indices))}
    offsets = {f"offsets_{t}": np.arange(samples + 1) for t in range(len(indices))}
    np.savez(path, dense=dense, **bags, **offsets, **more)


def dense_features(rng, samples):
    return np.log1p(rng.integers(0, 100, (samples, BOTTOM[0]))).astype(np.float32)


def main():
    directory = sys.argv[1]
    os.makedirs(directory, exist_ok=True)
    rng = np.random.default_rng(7)
    mlp = layers(rng)
    dense, tt, spec = dict(mlp), dict(mlp), '[model]\ndtype = "f16"\n'
    dense_spec = spec
    for t, rows in enumerate(ROWS):
        prefix = f"emb_l.{t}."
        dense[prefix + "weight"] = table(rng, rows)
        dense_spec += f'\n[[table]]\nprefix = "{prefix}"\ndialect = "dlrm"\n'
        if rows not in TENSOR_TRAINS:
            tt[prefix + "weight"] = dense[prefix + "weight"]
            spec += f'\n[[table]]\nprefix = "{prefix}"\ndialect = "dlrm"\ndtype = "i8"\n'
            continue
        ranks = (1, RANK, RANK, 1)
        for k, (p, q) in enumerate(zip(row_factors(rows), COLUMN_FACTORS)):
            core = rng.normal(0, 0.08, (1, p, ranks[k] * q * ranks[k + 1]))
            tt[f"{prefix}tt_cores.{k}"] = core.astype(np.float32)
        spec += f'\n[[table]]\nprefix = "{prefix}"\ndialect = "fbtt"\nnum_embeddings = {rows}\n'
        spec += f'column_factors = {list(COLUMN_FACTORS)}\ndtype = "i8"\n'
    save_file(dense, os.path.join(directory, "dense.safetensors"))
    save_file(tt, os.path.join(directory, "tt.safetensors"))
    for name, text in (("dense", dense_spec), ("tt", spec)):
        with open(os.path.join(directory, f"{name}.toml"), "w") as file:
            file.write(text)
    samples = dense_features(rng, 8192)
    for name in ("dense", "tt"):
        scattered = [name == "dense" or rows not in TENSOR_TRAINS for rows in ROWS]
        generator = np.random.default_rng(8)
        indices = [draw(generator, rows, len(samples), s) for rows, s in zip(ROWS, scattered)]
        write_samples(os.path.join(directory, f"{name}.npz"), samples, indices)


if __name__ == "__main__":
    main()

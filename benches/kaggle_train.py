"""Writes a CSV of 60,000 samples with Criteo Kaggle's 26 table sizes, and a config that learns its seven largest tables as tensor trains of
rank 32, to a directory. It takes numpy and safetensors. Then

    /usr/bin/time -v ttrec train DIR/train.toml -o DIR/run

says what memory that takes. The ids are random: nothing is to be learned.
"""

import pathlib
import sys

import numpy as np
from kaggle import BOTTOM, ROWS, draw

SAMPLES = 60_000

CONFIG = """[data]
format = "csv"
train = ["train.csv"]
label = "label"
dense = [{dense}]
categorical = [
{categorical}
]
log1p = true
valid_fraction = 0.02

[model]
embedding_dim = 16
bottom = [512, 256, 64, 16]
top = [512, 256, 1]
dense_below = 142000
table = {{ representation = "tt", rank = 32, column_factors = [2, 2, 4] }}

[train]
optimizer = "adagrad"
learning_rate = 0.01
"""


def main():
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    dense = [f"I{i}" for i in range(1, BOTTOM[0] + 1)]
    categories = [f"C{i}" for i in range(1, len(ROWS) + 1)]
    with open(directory / "train.csv", "w") as file:
        print(",".join(["label", *dense, *categories]), file=file)
        ids = [draw(rng, rows, SAMPLES, scattered=False) for rows in ROWS]
        columns = [rng.random(SAMPLES) < 0.25, *rng.integers(0, 100, (len(dense), SAMPLES)), *ids]
        np.savetxt(file, np.stack(columns, 1).astype(np.int64), "%d", delimiter=",")
    columns = [f'    {{ name = "{name}", hash_rows = {rows} }},' for name, rows in zip(categories, ROWS)]
    config = CONFIG.format(dense=", ".join(f'"{name}"' for name in dense), categorical="\n".join(columns))
    (directory / "train.toml").write_text(config)


main()

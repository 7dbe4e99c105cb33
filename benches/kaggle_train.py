"""Writes a CSV of 60,000 samples with Criteo Kaggle's 26 table sizes, and a config that learns its seven largest tables as tensor trains of
rank 32, to a directory. Then

    /usr/bin/time -v ttrec train DIR/train.toml -o DIR/run

says what memory that takes. The ids are random: nothing is to be learned.
"""

import pathlib
import random
import sys

TABLES = [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652, 2173, 4,
          7046547, 18, 15, 286181, 105, 142572]
SAMPLES, DENSE = 60_000, 13

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
    rng = random.Random(1)
    dense = [f"I{i}" for i in range(1, DENSE + 1)]
    categories = [f"C{i}" for i in range(1, len(TABLES) + 1)]
    with open(directory / "train.csv", "w") as file:
        print(",".join(["label", *dense, *categories]), file=file)
        for _ in range(SAMPLES):
            ids = [min(rows - 1, int(rows ** rng.random())) for rows in TABLES]
            print(*[int(rng.random() < 0.25), *(rng.randrange(100) for _ in dense), *ids], sep=",", file=file)
    columns = [f'    {{ name = "{name}", hash_rows = {rows} }},' for name, rows in zip(categories, TABLES)]
    config = CONFIG.format(dense=", ".join(f'"{name}"' for name in dense), categorical="\n".join(columns))
    (directory / "train.toml").write_text(config)


main()

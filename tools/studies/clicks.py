"""Writes a synthetic click log, and a config to train a DLRM on it.

    python tools/studies/clicks.py DIRECTORY [SEED]

The features have 4 to 40,000 categories, drawn by Zipf's law. A category has an effect of its own
and a vector, and a click's logit is the sum of the effects and of the dot
products of all pairs of vectors.
For `ttrec train DIRECTORY/clicks.toml -o RUN` and `frequencies.py RUN`. Needs numpy."""

import sys
from pathlib import Path

import numpy as np

CATEGORIES = [4, 10, 30, 60, 100, 300, 500, 1000, 2000, 5000, 15000, 40000]
ROWS = {"train": 150_000, "valid": 15_000, "test": 60_000}
ZIPF = 1.05
WIDTH = 4
CONFIG = """# A synthetic click log.
[data]
format = "csv"
train = ["train.csv"]
valid = ["valid.csv"]
test = ["test.csv"]
label = "click"
categorical = [{names}]
min_count = 2

[model]
embedding_dim = 16
top = [64, 1]

[train]
optimizer = "adagrad"
learning_rate = 0.02
batch = 256
epochs = 3
select = "auc"
seed = {seed}
"""


def main():
    folder, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    effects = [random.normal(0, 0.4, n) for n in CATEGORIES]
    vectors = [random.normal(0, 0.35, (n, WIDTH)) for n in CATEGORIES]
    names = [f"c{n}" for n in CATEGORIES]
    for split, rows in ROWS.items():
        shares = [np.arange(1, n + 1) ** -ZIPF for n in CATEGORIES]
        ids = [random.choice(len(share), rows, p=share / share.sum()) for share in shares]
        total = sum(vector[i] for vector, i in zip(vectors, ids))
        squares = sum((vector[i] ** 2).sum(1) for vector, i in zip(vectors, ids))
        logits = sum(effect[i] for effect, i in zip(effects, ids)) - 1
        logits += ((total**2).sum(1) - squares) / 2
        clicks = random.random(rows) < 1 / (1 + np.exp(-logits))
        table = np.column_stack([clicks, *ids])
        header = ",".join(["click", *names])
        np.savetxt(folder / f"{split}.csv", table, "%d", ",", header=header, comments="")
    quoted = ", ".join(f'"{name}"' for name in names)
    (folder / "clicks.toml").write_text(CONFIG.format(names=quoted, seed=seed))


if __name__ == "__main__":
    main()

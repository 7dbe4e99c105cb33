"""What weights by frequency do to a planned model: its loss on the test split, for several weights.

    python tools/studies/frequencies.py RUN [BUDGET...]

RUN is the output directory of `ttrec train`, with `best.safetensors` and `frequencies.npz`. BUDGET
is a size or a percentage, as `ttrec plan` takes it. Each weight is a function of the count of a
row; those with a floor add the mean over all rows, so that half of the total weight is spread
evenly. Prints how much worse each plan is than the model as f32. METRIC is the metric, "auc" by
default; DATA is the directory of the data, if it has moved; TTREC names the command. Needs
numpy."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TTREC = os.environ.get("TTREC", "ttrec")
METRIC = os.environ.get("METRIC", "auc")
BUDGETS = ["3%", "5%", "8%", "12%"]
WEIGHTS = {
    "none": None,
    "count": lambda count: count,
    "root": np.sqrt,
    "count and floor": lambda count: count + count.mean(),
    "root and floor": lambda count: np.sqrt(count) + np.sqrt(count).mean(),
}
# So large that the one that `convert` adds to each weight hardly counts.
SCALE = 1000


def planned(run, budget, folder, weight):
    """What `plan` prints as JSON for this weight of a count."""
    command = [TTREC, "plan", run / "best.safetensors", "--budget", budget, "--json"]
    command += ["--judge", METRIC, "--split", "test", "-o", folder / "plan.toml"]
    if "DATA" in os.environ:
        command += ["--data-dir", os.environ["DATA"]]
    if weight:
        counts = np.load(run / "frequencies.npz")
        scaled = {name: SCALE * weight(counts[name].astype(float)) for name in counts}
        np.savez(folder / "weights.npz", **scaled)
        command += ["--frequencies", folder / "weights.npz"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main():
    run = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for budget in sys.argv[2:] or BUDGETS:
            for name, weight in WEIGHTS.items():
                found = planned(run, budget, Path(folder), weight)
                tables = ", ".join(
                    f"{t['name']} {t.get('books')} codes of {t.get('ranks')} {t['bytes']} bytes"
                    for t in found["tables"]
                )
                increase = found["judgement"]["increase"]
                print(f"{budget}, {name}: {METRIC} {increase:.5f} worse; {tables}", flush=True)


if __name__ == "__main__":
    main()

"""Rows of 2 to 4 bits, with a scale and an offset (f16) for each group of columns, beside the plan.

    python tools/studies/few_bits.py CHECKPOINT.safetensors TENSOR

A blob has i4 rows with one group. For each number of bits and group, prints the bytes of the table,
the relative error (Frobenius) of values whose ranges are fitted to their groups by least squares,
and the bytes and the predicted error of `ttrec plan` within as many bytes. TTREC names the command.
The exit code is 1 if a plan has a larger error. Needs numpy."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors_file import load

TTREC = os.environ.get("TTREC", "ttrec")
# Shares of a group's range that the fit starts from, and its iterations.
STARTS = (1.0, 0.85, 0.7, 0.55)
ROUNDS = 12


def squared_errors(groups, bits):
    """The least squared error that was found for each group."""
    top = 2**bits - 1
    low, high = groups.min(1), groups.max(1)
    means = groups.mean(1)
    best = np.full(len(groups), np.inf)
    for share in STARTS:
        scales = np.maximum((high - low) * share / top, 1e-12)
        offsets = (high + low) / 2 - scales * top / 2
        for _ in range(ROUNDS):
            codes = np.clip(np.rint((groups - offsets[:, None]) / scales[:, None]), 0, top)
            centred = codes - codes.mean(1, keepdims=True)
            slopes = (centred * (groups - means[:, None])).sum(1)
            slopes /= np.maximum((centred**2).sum(1), 1e-12)
            scales = np.where(slopes > 1e-12, slopes, scales)
            offsets = means - scales * codes.mean(1)
        scales = np.maximum(scales.astype(np.float16).astype(np.float64), 1e-7)
        offsets = offsets.astype(np.float16).astype(np.float64)
        codes = np.clip(np.rint((groups - offsets[:, None]) / scales[:, None]), 0, top)
        errors = (codes * scales[:, None] + offsets[:, None] - groups) ** 2
        best = np.minimum(best, errors.sum(1))
    return best


def planned(checkpoint, tensor, budget):
    """The bytes and the predicted error of the plan of one table."""
    with tempfile.TemporaryDirectory() as directory:
        spec = Path(directory) / "spec.toml"
        spec.write_text(f"[[table]]\ntensor = {json.dumps(tensor)}\n")
        command = [TTREC, "plan", checkpoint, "--spec", spec, "--budget", str(budget), "--json"]
        command += ["-o", Path(directory) / "plan.toml"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    (table,) = json.loads(output)["tables"]
    return table["bytes"], table["error"]


def main(checkpoint, tensor):
    values = load(checkpoint)[0][tensor].astype(np.float64)
    rows, columns = values.shape
    total = (values**2).sum()
    worse = False
    for bits in (2, 3, 4):
        for group in sorted({16, 32, 64, columns}):
            if columns % group:
                continue
            error = np.sqrt(squared_errors(values.reshape(-1, group), bits).sum() / total)
            length = rows * (-(-columns * bits // 8) + 4 * (columns // group))
            found, plan = planned(checkpoint, tensor, length)
            print(
                f"i{bits}, groups of {group}: {length} bytes, error {100 * error:.1f} %; "
                f"plan: {found} bytes, {100 * plan:.1f} %",
                flush=True,
            )
            worse |= plan > error
    return int(worse)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

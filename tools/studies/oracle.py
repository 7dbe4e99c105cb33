"""Whether `ttrec plan` finds the best: stores one table in every family at each budget, and compares.

    python tools/studies/oracle.py CHECKPOINT TENSOR ROWS COLUMNS [BUDGET...]

BUDGET is a percentage of the table as f32. For each family (dense rows, short rows, codes with and without a rotation, of several
ranks, bits and types of books) the largest member that fits is converted, and `ttrec verify` measures it. Prints the best, the
error of the plan and their ratio; the exit code is 1 if a ratio is above 1.05 or a plan exceeds its budget. TTREC names the
command."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TTREC = os.environ.get("TTREC", "ttrec")
BUDGETS = [3, 5, 8, 12, 18, 25, 50]
ROW = {"f32": lambda d: 4 * d, "f16": lambda d: 2 * d, "i8": lambda d: d + 8, "i4": lambda d: (d + 1) // 2 + 4}


def largest(numbers, fits):
    """The largest of ascending numbers that fits."""
    fitting = [number for number in numbers if fits(number)]
    return fitting[-1:] if fitting else []


def members(rows, columns, budget):
    """Specs that may fit, by formulas of docs/format.md; their blobs say how long they are."""
    room = budget - 64 * 12
    for dtype, row in ROW.items():
        if rows * row(columns) <= room:
            yield {"dtype": dtype}
        for rank in largest(range(1, columns), lambda r: rows * row(r) + 2 * r * columns <= room):
            yield {"representation": "low-rank", "rank": rank, "dtype": dtype}
    for bits in (8, 7, 6, 5, 4):
        for dtype, size in (("f16", 2), ("i8", 1)):
            book = lambda books, width: books * ((size << bits) * width + 4 * (size == 1))
            fits = lambda m: columns % m == 0 and rows * m + book(m, columns // m) <= room
            for books in largest(range(1, columns + 1), fits):
                yield {"representation": "codes", "books": books, "bits": bits, "dtype": dtype}
            for share in range(4, 21):
                rank = max(1, columns * share // 20)
                fits = lambda m: rows * m + book(m, -(-rank // m)) + 2 * m * -(-rank // m) * columns <= room
                for books in largest(range(1, rank + 1), fits):
                    yield {"representation": "codes", "books": books, "bits": bits, "rank": rank, "dtype": dtype}
            fits = lambda m: m << bits <= 8192 and rows * m + book(m, columns) <= room
            for books in largest(range(1, 17), fits):
                yield {"representation": "codes", "books": books, "bits": bits, "combine": "add", "dtype": dtype}


def run(*args):
    return subprocess.run([TTREC, *map(str, args)], check=True, capture_output=True, text=True).stdout


def store(folder, checkpoint, spec):
    """The length and the error of the blob of a spec."""
    blob = folder / "oracle.ttr"
    run("convert", checkpoint, "--spec", spec, "-o", blob)
    found = json.loads(run("verify", blob, "--against", checkpoint, "--spec", spec, "--max-error", 2, "--json"))
    return blob.stat().st_size, found["tables"][0]["relative_error"]


def main():
    checkpoint, tensor, rows, columns = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        folder, known = Path(folder), {}
        spec = folder / "spec.toml"
        for percent in [float(x) for x in sys.argv[5:]] or BUDGETS:
            budget = int(rows * columns * 4 * percent / 100)
            best = (float("inf"), None)
            for member in members(rows, columns, budget):
                text = "[[table]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in {"tensor": tensor, **member}.items())
                if text not in known:
                    spec.write_text(text)
                    known[text] = store(folder, checkpoint, spec)
                length, error = known[text]
                if length <= budget and error < best[0]:
                    best = (error, member)
            spec.write_text(f"[[table]]\ntensor = {json.dumps(tensor)}\n")
            plan = folder / "plan.toml"
            run("plan", checkpoint, "--spec", spec, "--budget", budget, "-o", plan)
            length, error = store(folder, checkpoint, plan)
            ratio = error / best[0] if best[0] > 0 else 1.0
            failed |= ratio > 1.05 or length > budget
            print(f"{percent:g} %: plan {error:.4f} in {length} of {budget} bytes, oracle {best[0]:.4f} {best[1]}, ratio {ratio:.3f}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

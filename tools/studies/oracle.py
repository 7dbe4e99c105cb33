"""Whether `ttrec plan` finds the best: stores a table in every family at each budget, and compares.

    python tools/studies/oracle.py CHECKPOINT TENSOR ROWS COLUMNS [BUDGET...]

BUDGET is a percentage of the table as f32. For each family (dense rows; short rows; tensor trains
of two and three cores; codes: put end to end with and without a rotation, or added, of several
ranks; of several bits and types of books) the largest member that fits is converted, and `ttrec
verify` measures it. For a table of more than four million elements, it tries no tensor trains,
fewer ranks, 8 and 7 bits, and only books in i8. Prints the best member, the error of the plan and
their ratio; the exit code is 1 if a ratio is above 1.05 or a plan exceeds its budget. TTREC names
the command."""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TTREC = os.environ.get("TTREC", "ttrec")
BUDGETS = [3, 5, 8, 12, 18, 25, 50]
ROW = {
    "f32": lambda d: 4 * d,
    "f16": lambda d: 2 * d,
    "i8": lambda d: d + 8,
    "i4": lambda d: (d + 1) // 2 + 4,
}
LARGE = 4 << 20
# What is tried of a small table and of a large one: twentieths of the columns, bits, and books.
SMALL_TABLE = (range(4, 21), (8, 7, 6, 5, 4), {"f16": 2, "i8": 1})
LARGE_TABLE = ((5, 8, 11, 14, 17, 20), (8, 7), {"i8": 1})
# Twentieths of the columns of added codes, whose books are i8.
ADDED = (12, 16, 20)


def largest(numbers, fits):
    """The largest of ascending numbers that fits."""
    fitting = [number for number in numbers if fits(number)]
    return fitting[-1:] if fitting else []


def tensor_trains(rows, columns, room):
    """Specs of two and three cores. The last core has all, a half or a quarter of the columns."""
    for cores in (2, 3):
        edge = math.ceil(rows ** (1 / cores))
        row_factors = [edge] * (cores - 1) + [math.ceil(rows / edge ** (cores - 1))]
        for narrow in (1, 2):
            column_factors = [narrow] * (cores - 1) + [columns // narrow ** (cores - 1)]
            if math.prod(column_factors) != columns:
                continue
            slices = [p * q for p, q in zip(row_factors, column_factors)]
            for dtype, size in {"f16": 2, "i8": 1}.items():

                def length(rank):
                    ranks = [1, *(min(rank, slices[0], slices[-1]) for _ in slices[1:]), 1]
                    return size * sum(s * a * b for s, a, b in zip(slices, ranks, ranks[1:]))

                for rank in largest(range(1, 257), lambda rank: length(rank) <= room):
                    yield {
                        "representation": "tt",
                        "row_factors": row_factors,
                        "column_factors": column_factors,
                        "rank": rank,
                        "dtype": dtype,
                    }


def members(rows, columns, budget):
    """Specs that may fit, by formulas of docs/format.md; their blobs say how long they are."""
    room = budget - 64 * 12
    for dtype, row in ROW.items():
        if rows * row(columns) <= room:
            yield {"dtype": dtype}
        for rank in largest(range(1, columns), lambda r: rows * row(r) + 2 * r * columns <= room):
            yield {"representation": "low-rank", "rank": rank, "dtype": dtype}
    if rows * columns <= LARGE:
        yield from tensor_trains(rows, columns, room)
    shares, all_bits, dtypes = LARGE_TABLE if rows * columns > LARGE else SMALL_TABLE
    for bits in all_bits:
        for dtype, size in dtypes.items():
            codes = {"representation": "codes", "bits": bits, "dtype": dtype}

            def length(books, width, projected=False):
                inner = books * width
                projection = 2 * inner * columns if projected else 0
                return rows * books + (size << bits) * inner + 4 * books * (size == 1) + projection

            def plain(books):
                return columns % books == 0 and length(books, columns // books) <= room

            for books in largest(range(1, columns + 1), plain):
                yield {**codes, "books": books}
            for rank in sorted({max(1, columns * share // 20) for share in shares}):
                of_rank = lambda books: length(books, -(-rank // books), True) <= room
                for books in largest(range(1, rank + 1), of_rank):
                    yield {**codes, "books": books, "rank": rank, "rotation": True}
            for rank in sorted({columns * share // 20 for share in ADDED}):
                if rank == 0 or dtype != "i8":
                    continue
                projection = 2 * rank * columns if rank < columns else 0
                # More books than this take too long to learn.
                added = lambda books: books << bits <= 8192 and (
                    rows * books + ((rank << bits) + 4) * books + projection <= room
                )
                for books in largest(range(1, 17), added):
                    if 2 * books * (rows + (rank << bits)) > room:
                        of_rank = {"rank": rank, "rotation": True} if rank < columns else {}
                        yield {**codes, "books": books, "combine": "add", **of_rank}


def run(*args):
    done = subprocess.run([TTREC, *map(str, args)], check=True, capture_output=True, text=True)
    return done.stdout


def store(folder, checkpoint, spec):
    """The length and the error of the blob of a spec."""
    blob = folder / "oracle.ttr"
    run("convert", checkpoint, "--spec", spec, "-o", blob)
    verify = ("verify", blob, "--against", checkpoint, "--spec", spec, "--max-error", 2, "--json")
    return blob.stat().st_size, json.loads(run(*verify))["tables"][0]["relative_error"]


def main():
    checkpoint, tensor, rows, columns = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        folder, known = Path(folder), {}
        spec, plan = folder / "spec.toml", folder / "plan.toml"
        for percent in [float(x) for x in sys.argv[5:]] or BUDGETS:
            budget = int(rows * columns * 4 * percent / 100)
            best = (float("inf"), None)
            for member in members(rows, columns, budget):
                settings = {"tensor": tensor, **member}.items()
                text = "[[table]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings)
                if text not in known:
                    spec.write_text(text)
                    known[text] = store(folder, checkpoint, spec)
                length, error = known[text]
                if length <= budget and error < best[0]:
                    best = (error, member)
            spec.write_text(f"[[table]]\ntensor = {json.dumps(tensor)}\n")
            run("plan", checkpoint, "--spec", spec, "--budget", budget, "-o", plan)
            length, error = store(folder, checkpoint, plan)
            ratio = error / best[0] if best[0] > 0 else 1.0
            failed |= ratio > 1.05 or length > budget
            print(
                f"{percent:g} %: plan {error:.4f} in {length} of {budget} bytes, "
                f"oracle {best[0]:.4f} {best[1]}, ratio {ratio:.3f}",
                flush=True,
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()

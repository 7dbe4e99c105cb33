"""Calls of `ttrec`, whose answers are compared with those of the program that saved the model."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

NOT_INSTALLED = 77


def require(*packages):
    """Imports modules; ends if one is not installed or does not load."""
    modules = []
    for package in packages:
        try:
            modules.append(import_module(package))
        except (ImportError, OSError) as error:
            print(f"{package}: {error}".replace("\n", " "), file=sys.stderr)
            sys.exit(NOT_INSTALLED)
    return modules if len(modules) > 1 else modules[0]


np = require("numpy")
TTREC = os.environ.get("TTREC", "ttrec")


def ttrec(*arguments, code=0):
    """Runs `ttrec` and returns what it printed."""
    ran = subprocess.run([TTREC, *map(str, arguments)], capture_output=True, text=True)
    if ran.returncode != code:
        sys.exit(f"ttrec {' '.join(map(str, arguments))}: {ran.stdout}{ran.stderr}")
    return ran.stdout + ran.stderr


def convert(checkpoint, spec="", blob="model.ttr"):
    """Converts, with a spec unless it is empty."""
    with open("spec.toml", "w") as file:
        file.write(spec)
    ttrec("convert", checkpoint, *(["--spec", "spec.toml"] if spec else []), "-o", blob)
    return blob


def offered(checkpoint):
    """The spec that `convert` offers for a checkpoint that needs one."""
    said = ttrec("convert", checkpoint, "-o", "none.ttr", code=3)
    lines = said.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("[["))
    return said, "\n".join(lines[first:])


def equal(found, expected, what, max_error=1e-5):
    """Compares arrays of one shape."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        sys.exit(f"{what}: shape {found.shape}: expected {expected.shape}")
    difference = float(np.abs(found - expected).max())
    if not difference <= max_error:
        sys.exit(f"{what}: the greatest difference is {difference}: expected {max_error} or less")
    print(f"ok: {what}: the greatest difference is {difference:.1e}")


def rows(blob, table, ids):
    """The rows of these ids."""
    np.save("ids.npy", np.asarray(ids, "int64"))
    ttrec("lookup", blob, "--table", table, "--bags", "ids.npy", "--mode", "rows", "-o", "rows.npy")
    return np.load("rows.npy")


def all_rows(blob, table, weight, what):
    """Compares every row of a table with a matrix."""
    weight = np.asarray(weight)
    equal(rows(blob, table, np.arange(len(weight))), weight, what, 0.0)


def bags(blob, table, indices, offsets, mode, *options, weights=None):
    """The pooled rows of bags."""
    arrays = {"indices": np.asarray(indices), "offsets": np.asarray(offsets)}
    if weights is not None:
        arrays["weights"] = np.asarray(weights, "float32")
        options = [*options, "--weighted"]
    np.savez("bags.npz", **arrays)
    ttrec("lookup", blob, "--table", table, "--bags", "bags.npz", "--mode", mode, *options,
          "-o", "pooled.npy")
    return np.load("pooled.npy")


def scores(blob, samples, expected, what, *options):
    """Compares the scores of samples, a dict of arrays, with those of the program."""
    np.savez("samples.npz", **{name: np.asarray(array) for name, array in samples.items()})
    np.save("expected.npy", np.asarray(expected, "float32"))
    said = ttrec("score", blob, "--batch", "samples.npz", "--against", "expected.npy",
                 "--max-error", "1e-5", *options)
    print(f"ok: {what}: {said.split(': ', 1)[1].splitlines()[0]}")


def of(package):
    """The package with its version."""
    return f"{package} {version(package)}"

"""The codes of `ttrec convert` beside FAISS's, from the same rows, with as many codes of 8 bits.

    python tools/studies/codes_faiss.py CHECKPOINT.safetensors TENSOR [BOOKS...]

Prints the bytes, the relative error (Frobenius) and the seconds, by the clock and of all cores, of
FAISS's ProductQuantizer (PQ), of its OPQMatrix with a ProductQuantizer (OPQ), and of codes of `ttrec
convert`, without and with a rotation. Ours take fewer bytes: their books and rotation are f16, and
FAISS's f32. The ratio is that of the squared errors. The seconds of `convert` include reading and
writing. THREADS is the number of threads, 2 by default; TTREC names the command. The exit code is 1
if a squared error is above 1.03 times FAISS's, or our CPU time is longer: on a busy machine, the
clock also counts other programs. FAISS's threads sleep while they wait for each other, unless
OMP_WAIT_POLICY says otherwise. Needs faiss-cpu."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Before `import faiss`: OpenMP reads it when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
import numpy as np
from safetensors_file import load

TTREC = os.environ.get("TTREC", "ttrec")
THREADS = int(os.environ.get("THREADS", "2"))
BITS = 8


def spent():
    """The time by the clock, and the CPU time of this process and of its finished children."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.monotonic(), sum(u.ru_utime + u.ru_stime for u in used)])


def of_pq(rows, books):
    quantizer = faiss.ProductQuantizer(rows.shape[1], books, BITS)
    quantizer.train(rows)
    return quantizer.decode(quantizer.compute_codes(rows))


def of_opq(rows, books):
    columns = rows.shape[1]
    rotation, quantizer = faiss.OPQMatrix(columns, books), faiss.ProductQuantizer(columns, books, BITS)
    rotation.pq = quantizer
    rotation.train(rows)
    return rotation.reverse_transform(of_pq(rotation.apply(rows), books))


def of_faiss(learn, rows, books):
    """The bytes, the error, and the time that it took."""
    start = spent()
    decoded = learn(rows, books)
    taken = spent() - start
    count, columns = rows.shape
    length = count * books * BITS // 8 + (4 << BITS) * columns
    if learn is of_opq:
        length += 4 * columns * columns
    return length, np.linalg.norm(rows - decoded) / np.linalg.norm(rows), taken


def of_ttrec(folder, checkpoint, tensor, books, rotation):
    """The bytes, the error that `verify` finds, and the time of `convert`."""
    spec, blob = folder / "codes.toml", folder / "codes.ttr"
    spec.write_text(
        f'[[table]]\ntensor = {json.dumps(tensor)}\nrepresentation = "codes"\n'
        f"books = {books}\nbits = {BITS}\nrotation = {str(rotation).lower()}\ndtype = \"f16\"\n"
    )
    threads = {**os.environ, "RAYON_NUM_THREADS": str(THREADS)}
    run = lambda *args: subprocess.run([TTREC, *args], check=True, capture_output=True, env=threads)
    start = spent()
    run("convert", checkpoint, "--spec", spec, "-o", blob)
    taken = spent() - start
    found = run("verify", blob, "--against", checkpoint, "--spec", spec, "--max-error", "2", "--json")
    return blob.stat().st_size, json.loads(found.stdout)["tables"][0]["relative_error"], taken


def main():
    checkpoint, tensor = sys.argv[1], sys.argv[2]
    rows = load(checkpoint)[0][tensor].astype(np.float32, order="C")
    numbers = [int(x) for x in sys.argv[3:]] or [m for m in (8, 16, 32) if rows.shape[1] % m == 0]
    faiss.omp_set_num_threads(THREADS)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for books in numbers:
            for name, learn, rotation in (("PQ", of_pq, False), ("OPQ", of_opq, True)):
                theirs, their_error, their_time = of_faiss(learn, rows, books)
                ours, error, our_time = of_ttrec(Path(folder), checkpoint, tensor, books, rotation)
                ratio = (error / their_error) ** 2
                failed |= ours > theirs or ratio > 1.03 or our_time[1] > their_time[1]
                print(
                    f"{books} codes, {name}: FAISS {their_error:.4f} in {theirs} bytes and "
                    f"{their_time[0]:.2f} s (CPU {their_time[1]:.2f} s), ttrec {error:.4f} in {ours} "
                    f"bytes and {our_time[0]:.2f} s (CPU {our_time[1]:.2f} s), squared {ratio:.3f}",
                    flush=True,
                )
    sys.exit(int(failed))  # NumPy's booleans are printed, and exit with 1.


if __name__ == "__main__":
    main()

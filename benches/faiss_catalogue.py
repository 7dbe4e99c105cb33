"""Searches of a whole catalogue by FAISS: the FAISS figures of docs/benchmarks.md and docs/retrieval.md.

    pip install faiss-cpu numpy
    python benches/faiss_catalogue.py            # exact, the size of `ttrec bench --suite catalogue`
    python benches/faiss_catalogue.py --indices  # approximate indices over 1,000,000 rows

Prints the processor time of a search for the best 100 rows on one thread, the least of several. The answers of the exact search
are compared with numpy's on some rows before anything is timed. `ttrec bench --suite catalogue` times the same on the same
machine; run the two one after the other.

The rows of --indices are those of a tensor train of random cores (rank 16), as a table that `ttrec train` would write has
structure too; the queries are random. For each index: bytes, seconds to build, and the time of a query at the least effort whose
recall of the exact best 100 reaches 0.95.
"""

import argparse
import time

import faiss
import numpy as np

DIM, K = 64, 100


def least(run, times):
    seconds = []
    for _ in range(times):
        start = time.thread_time()
        run()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def exact(rows, times):
    rng = np.random.default_rng(1)
    table = rng.random((rows, DIM), np.float32) - 0.5
    index = faiss.IndexFlatIP(DIM)
    index.add(table)
    del table
    for queries in (1, 8, 64):
        x = rng.random((queries, DIM), np.float32) - 0.5
        scores, ids = index.search(x, K)
        part = index.reconstruct_n(0, min(rows, 100_000)).astype(np.float64) @ x.T.astype(np.float64)
        found = [set(row) for row in ids]
        for query in range(queries):
            best = np.flatnonzero(part[:, query] > scores[query, -1] + 1e-4)
            assert all(row in found[query] for row in best), "a better row was left out"
        seconds = least(lambda: index.search(x, K), times)
        print(f"IndexFlatIP, {rows} x {DIM}, {queries} queries: {1e3 * seconds / queries:.2f} ms a query", flush=True)


def train(rows, rank=16):
    """Rows of a tensor train of 100 x 100 x 100 rows and 2 x 2 x 16 columns."""
    rng = np.random.default_rng(2)
    cores = [rng.standard_normal((100, r, q, s)).astype(np.float32) / np.sqrt(r)
             for r, q, s in ((1, 2, rank), (rank, 2, rank), (rank, 16, 1))]
    prefix = np.einsum("iaqb,jbrc->ijqrc", cores[0], cores[1]).reshape(100 * 100 * 4, rank)
    table = prefix @ cores[2].transpose(1, 0, 2, 3).reshape(rank, 100 * 16)
    return np.ascontiguousarray(table.reshape(10_000, 4, 100, 16).transpose(0, 2, 1, 3).reshape(-1, DIM)[:rows])


def indices(times):
    table = train(1_000_000)
    queries = (np.random.default_rng(3).random((200, DIM), np.float32) - 0.5)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(table)
    _, truth = flat.search(queries, K)
    print(f"IndexFlatIP: {table.nbytes} bytes, {1e3 * least(lambda: flat.search(queries[:1], K), times):.2f} ms a query", flush=True)

    def report(name, index, seconds, efforts, set_effort):
        size = len(faiss.serialize_index(index))
        for effort in efforts:
            set_effort(effort)
            _, found = index.search(queries, K)
            recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth)])
            if recall >= 0.95:
                break
        one = [least(lambda: index.search(queries[q : q + 1], K), times) for q in range(20)]
        print(f"{name}: {size} bytes, built in {seconds:.0f} s, effort {effort}, recall {recall:.3f}, "
              f"{1e3 * np.mean(one):.2f} ms a query", flush=True)

    start = time.thread_time()
    coarse = faiss.IndexFlatIP(DIM)
    index = faiss.IndexIVFPQ(coarse, DIM, 1024, 32, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(table[:: len(table) // 100_000])
    refined = faiss.IndexRefineFlat(index)
    refined.add(table)
    built = time.thread_time() - start

    def probes(n):
        index.nprobe = n
        refined.k_factor = 10

    size = len(faiss.serialize_index(index))
    print(f"IVF1024,PQ32 alone: {size} bytes; with the rows to refine by: {size + table.nbytes} bytes", flush=True)
    report("IVF1024,PQ32 refined", refined, built, (8, 16, 32, 64, 128, 256, 512, 1024), probes)

    start = time.thread_time()
    index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.add(table)
    built = time.thread_time() - start

    def search(n):
        index.hnsw.efSearch = n

    report("HNSW32", index, built, (100, 200, 400, 800, 1600, 3200, 6400), search)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=11_000_000)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--indices", action="store_true")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if args.indices:
        indices(args.times)
    else:
        exact(args.rows, args.times)


if __name__ == "__main__":
    main()

"""PyTorch's bags on the shape of `ttrec bench`: the PyTorch figures of docs/benchmarks.md.

    pip install torch numpy
    python benches/torch_bags.py

One thread. 11,000,000 x 64, 512 bags of 20 lookups in a batch, 20 batches in rotation; prints ns per looked-up row, the
fastest of several passes. Needs about 8 GB of memory. Every answer is compared with a plain sum before it is timed.
"""

import time

import numpy as np
import torch

ROWS, DIM, BAGS, BAG, BATCHES = 11_000_000, 64, 512, 20, 20
ROW_FACTORS = (200, 220, 250)
COLUMN_FACTORS = ((4, 4, 4), (2, 2, 16))
RANKS = (16, 32, 64)
OFFSETS = torch.arange(0, BAGS * BAG, BAG)


def draw(ids, generator):
    """The ids of one batch, as `tools/cli/src/bench/traffic.rs` draws them."""
    uniform = generator.random(BAGS * BAG)
    if ids == "uniform":
        return (uniform * ROWS).astype(np.int64)
    exponent = 1 - 1.05
    ranks = ((uniform * (ROWS**exponent - 1) + 1) ** (1 / exponent)).astype(np.int64) - 1
    ranks = np.clip(ranks, 0, ROWS - 1)
    return ranks * 2_654_435_761 % ROWS if ids == "zipf" else ranks


def nanoseconds(pool, batches, passes):
    fastest = float("inf")
    for _ in range(passes):
        start = time.perf_counter()
        for batch in batches:
            pool(batch)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest / (len(batches) * BAGS * BAG) * 1e9


def report(name, ids, pool, rows_of, batches, tolerance, passes):
    """Times `pool` on `batches`, once it agrees with sums of the rows that `rows_of` gives."""
    expected = rows_of(batches[0]).double().view(BAGS, BAG, DIM).sum(1)
    error = (pool(batches[0]).double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"{name}, {ids}: off by {error:.1e} of the largest value"
    print(f"{name:24} {ids:12} {nanoseconds(pool, batches, passes):10.1f}", flush=True)


def tensor_train(q, rank):
    """Bags by two batched products, as FBTT's formula reads, and its rows in double precision."""
    (p0, p1, p2), (q0, q1, q2) = ROW_FACTORS, q
    g0, g1 = torch.randn(p0, q0, rank), torch.randn(p1, rank, q1 * rank)
    g2 = torch.randn(p2, rank, q2)

    def digits(ids):
        return ids // (p1 * p2), ids // p2 % p1, ids % p2

    def pool(ids):
        i0, i1, i2 = digits(ids)
        prefix = torch.bmm(g0[i0], g1[i1]).view(-1, q0 * q1, rank)
        return torch.bmm(prefix, g2[i2]).view(BAGS, BAG, DIM).sum(1)

    def rows(ids):
        i0, i1, i2 = digits(ids)
        cores = g0[i0].double(), g1[i1].double().view(-1, rank, q1, rank), g2[i2].double()
        return torch.einsum("nar,nrbs,nsc->nabc", *cores).reshape(-1, DIM)

    return pool, rows


def main():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    generator = np.random.default_rng(1)
    kinds = ("uniform", "zipf", "zipf-sorted")
    batches = {ids: [torch.from_numpy(draw(ids, generator)) for _ in range(BATCHES)] for ids in kinds}
    print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; ns per row")

    weight = torch.randn(ROWS, DIM)
    bag = torch.nn.functional.embedding_bag
    for ids in kinds:
        pool = lambda i: bag(i, weight, OFFSETS, mode="sum")
        report("dense-f32", ids, pool, lambda i: weight[i], batches[ids], 1e-5, 7)
    quantized = torch.ops.quantized
    i8 = quantized.embedding_bag_byte_prepack(weight)
    for ids in kinds:
        pool = lambda i: quantized.embedding_bag_byte_rowwise_offsets(i8, i, OFFSETS, False, 0, False)
        report("dense-i8", ids, pool, lambda i: weight[i], batches[ids], 1e-2, 7)
    del i8
    i4 = quantized.embedding_bag_4bit_prepack(weight)
    for ids in kinds:
        pool = lambda i: quantized.embedding_bag_4bit_rowwise_offsets(i4, i, OFFSETS, False, 0, False)
        report("dense-i4", ids, pool, lambda i: weight[i], batches[ids], 2e-1, 7)
    del i4, weight

    for q in COLUMN_FACTORS:
        for rank in RANKS:
            pool, rows = tensor_train(q, rank)
            name = f"bmm-q{'x'.join(map(str, q))}-r{rank}"
            for ids in ("uniform", "zipf-sorted"):
                report(name, ids, pool, rows, batches[ids][:2], 1e-4, 3)


if __name__ == "__main__":
    with torch.no_grad():
        main()

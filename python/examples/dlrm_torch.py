"""A DLRM with facebookresearch/dlrm's layers and tensor trains, on data of Criteo Kaggle's shape.

    python python/examples/dlrm_torch.py --rows 10000 --blob dlrm.ttr
    python python/examples/dlrm_torch.py --compare

The first line trains tables of at most so many rows, and checks that the blob scores as torch does.
The second line compares steps with the seven largest tables as tensor trains and as dense tables
with sparse gradients, in turns. The clicks are random: the example shows the speed, and how to
write a blob.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import torch
from torch import nn

import ttrec.torch

#: Rows of the tables of Criteo Kaggle.
KAGGLE = [
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992,
    5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
]  # fmt: skip
DENSE, DIM = 13, 16


def mlp(*widths: int, last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1], last)


class DLRM(nn.Module):
    """Bottom MLP, tables, dot products of all pairs of vectors, top MLP."""

    def __init__(self, rows: list[int], tensor_trains: int, rank: int) -> None:
        super().__init__()
        largest = set(sorted(range(len(rows)), key=rows.__getitem__)[-tensor_trains:])
        if tensor_trains == 0:
            largest = set()
        self.tables = nn.ModuleList(
            ttrec.torch.TTEmbeddingBag(n, DIM, rank=rank, mode="sum", fused="sgd", lr=0.1)
            if at in largest
            else nn.EmbeddingBag(n, DIM, mode="sum", sparse=True)
            for at, n in enumerate(rows)
        )
        vectors = len(rows) + 1
        self.bottom = mlp(DENSE, 512, 256, 64, DIM, last=nn.ReLU())
        self.top = mlp(DIM + vectors * (vectors - 1) // 2, 512, 256, 1, last=nn.Sigmoid())
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, -1), persistent=False)

    def forward(self, dense: torch.Tensor, indices: list[torch.Tensor]) -> torch.Tensor:
        first = self.bottom(dense)
        vectors = [first, *(table(bags) for table, bags in zip(self.tables, indices))]
        stacked = torch.stack(vectors, 1)
        dots = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([first, dots], 1))[:, 0]


def batch(rows: list[int], size: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    # Few rows are looked up often, as in logs of clicks.
    indices = [(torch.rand(size, 1) ** 4 * n).long() for n in rows]
    return torch.rand(size, DENSE), indices, torch.randint(2, (size,)).float()


def train(model: DLRM, batches: list[tuple]) -> float:
    """The median time of a step in ms."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    times = []
    for dense, indices, clicks in batches:
        start = time.perf_counter()
        loss = nn.functional.binary_cross_entropy(model(dense, indices), clicks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, help="the most rows of a table")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--blob", help="the blob to write")
    parser.add_argument("--compare", action="store_true", help="time dense tables, too")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [min(n, args.rows or n) for n in KAGGLE]
    batches = [batch(rows, args.batch) for _ in range(args.steps)]
    model = DLRM(rows, 7, args.rank)
    print(f"7 tensor trains: {train(model, batches):.2f} ms a step")
    if args.compare:
        dense = DLRM(rows, 0, args.rank)
        rounds = [(train(model, batches), train(dense, batches)) for _ in range(7)]
        ratios = [tensor_trains / dense for tensor_trains, dense in rounds]
        tensor_trains, dense = np.median(rounds, axis=0)
        print(f"in turns {tensor_trains:.2f} ms, and {dense:.2f} ms with dense tables: ", end="")
        print(f"ratio {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if args.blob:
        names = [f"tables.{k}" for k in range(len(rows))]
        layers = {"bottom": "bottom.", "top": "top.", "tables": names}
        blob = ttrec.torch.save_blob(model, args.blob, model=layers)
        dense, indices, _ = batches[0]
        found = blob.ranker().score(dense, indices)
        with torch.no_grad():
            worst = np.abs(found - model(dense, indices).numpy()).max()
        print(f"{blob}: scores differ from torch's by at most {worst:.1e}")


if __name__ == "__main__":
    main()

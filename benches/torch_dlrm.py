"""A training step of facebookresearch/dlrm's model on the shapes of benches/train_dlrm.rs, by the operations that its dlrm_s_pytorch.py
calls: one sparse nn.EmbeddingBag (sum) per table, the bottom and top nn.Linear with ReLU, torch.bmm and the lower triangle for the
interaction, BCELoss, SGD. All tables dense. Prints microseconds per sample, the best of the rounds.

    pip install torch numpy
    python benches/torch_dlrm.py [threads]
"""

import sys
import time

import numpy as np
import torch
from torch import nn

TABLES = [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652, 2173, 4,
          7046547, 18, 15, 286181, 105, 142572]
DIM, DENSE, BATCH, BATCHES = 16, 13, 128, 20


def mlp(widths, last):
    layers = []
    for i, (n, m) in enumerate(zip(widths, widths[1:])):
        layers += [nn.Linear(n, m), last if i == len(widths) - 2 else nn.ReLU()]
    return nn.Sequential(*layers)


def zipf(rng, rows, count):
    """Ids by Zipf's law with exponent 1.05, the most frequent first, by inverting the integral of its density."""
    u, a = rng.random(count), 0.05
    x = (1 - u * (1 - (rows + 1.0) ** -a)) ** (-1 / a)
    return np.minimum(x.astype(np.int64) - 1, rows - 1)


class Dlrm(nn.Module):
    def __init__(self):
        super().__init__()
        self.bottom = mlp([DENSE, 512, 256, 64, DIM], nn.ReLU())
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, DIM, mode="sum", sparse=True) for rows in TABLES)
        vectors = len(TABLES) + 1
        self.top = mlp([DIM + vectors * (vectors - 1) // 2, 512, 256, 1], nn.Sigmoid())
        self.i, self.j = torch.tril_indices(vectors, vectors, -1)

    def forward(self, dense, indices, offsets):
        x = self.bottom(dense)
        pooled = [table(ids, offsets) for table, ids in zip(self.tables, indices)]
        t = torch.cat([x] + pooled, dim=1).view(len(x), -1, DIM)
        pairs = torch.bmm(t, t.transpose(1, 2))[:, self.i, self.j]
        return self.top(torch.cat([x, pairs], dim=1)).squeeze(1)


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    rng = np.random.default_rng(1)
    model, loss = Dlrm(), nn.BCELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    offsets = torch.arange(BATCH)
    batches = [
        (
            torch.from_numpy(rng.random((BATCH, DENSE), dtype=np.float32)),
            [torch.from_numpy(zipf(rng, rows, BATCH)) for rows in TABLES],
            torch.from_numpy((rng.random(BATCH) < 0.25).astype(np.float32)),
        )
        for _ in range(BATCHES)
    ]

    def step(dense, indices, labels):
        optimizer.zero_grad()
        error = loss(model(dense, indices, offsets), labels)
        error.backward()
        optimizer.step()
        return error.item()

    first = step(*batches[0])
    rounds = []
    for _ in range(12):
        start = time.perf_counter()
        for batch in batches:
            step(*batch)
        rounds.append(time.perf_counter() - start)
    last = step(*batches[0])
    assert last < first, (first, last)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads: {min(rounds) / (BATCH * BATCHES) * 1e6:.2f} us per sample")


main()

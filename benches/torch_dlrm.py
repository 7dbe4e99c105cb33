"""A training step of facebookresearch/dlrm's model on the shapes of benches/train_dlrm.rs, by the operations that its dlrm_s_pytorch.py
calls: one sparse nn.EmbeddingBag (sum) per table, the bottom and top nn.Linear with ReLU, torch.bmm and the lower triangle for the
interaction, BCELoss, SGD. All tables dense. Prints microseconds per sample, the best of the rounds.

    pip install torch numpy safetensors
    python benches/torch_dlrm.py [threads]
"""

import sys
import time

import numpy as np
import torch
from kaggle import BOTTOM, DIM, ROWS, TOP, dense_features, draw
from torch import nn

BATCH, BATCHES = 128, 20


def mlp(widths, last):
    layers = []
    for i, (n, m) in enumerate(zip(widths, widths[1:])):
        layers += [nn.Linear(n, m), last if i == len(widths) - 2 else nn.ReLU()]
    return nn.Sequential(*layers)


class Dlrm(nn.Module):
    def __init__(self):
        super().__init__()
        self.bottom = mlp(BOTTOM, nn.ReLU())
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, DIM, mode="sum", sparse=True) for rows in ROWS)
        vectors = len(ROWS) + 1
        self.top = mlp([DIM + vectors * (vectors - 1) // 2, *TOP], nn.Sigmoid())
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
            torch.from_numpy(dense_features(rng, BATCH)),
            [torch.from_numpy(draw(rng, rows, BATCH, scattered=False)) for rows in ROWS],
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

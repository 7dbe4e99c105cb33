"""Trains a click model on several processes with DistributedDataParallel over gloo.

    torchrun --standalone --nproc-per-node 2 python/examples/distributed.py --steps 50

The cores of tensor trains are small, so that all of their gradients are reduced, like those of the
layers. With the same --batch, which is that of all processes together, the losses are those of one
process. The clicks are random draws of a hidden model.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ttrec.torch import TTEmbeddingBag

ROWS = (100_000, 50_000, 20_000)


class Model(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(TTEmbeddingBag(n, 32, rank=rank, mode="sum") for n in ROWS)
        self.top = nn.Sequential(nn.Linear(32 * len(ROWS), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, indices: list[torch.Tensor]) -> torch.Tensor:
        vectors = [table(bags) for table, bags in zip(self.tables, indices)]
        return self.top(torch.cat(vectors, 1))[:, 0]


def batch(step: int, size: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The samples of all processes: indices of four lookups for each table, and clicks."""
    draws = torch.Generator().manual_seed(step)
    indices = [torch.randint(0, n, (size, 4), generator=draws) for n in ROWS]
    liked = sum((bags < n // 2).float().mean(1) for bags, n in zip(indices, ROWS)) / len(ROWS)
    return indices, (torch.rand(size, generator=draws) < liked).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Without `fused`, the buffers of tensor trains never change.
    model = DistributedDataParallel(Model(args.rank), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss_of = nn.BCEWithLogitsLoss()

    seconds = 0.0
    for step in range(args.steps):
        indices, clicks = batch(step, args.batch)
        mine = slice(rank * args.batch // size, (rank + 1) * args.batch // size)
        start = time.perf_counter()
        loss = loss_of(model([bags[mine] for bags in indices]), clicks[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.perf_counter() - start if step else 0.0  # the first one allocates
        mean = loss.detach() / size
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean.item():.8f}")
    if rank == 0:
        # A ring sends each number to reduce it and to spread the result.
        numbers = sum(parameter.numel() for parameter in model.parameters())
        sent = 4 * numbers * 2 * (size - 1) // size
        rate = args.batch * (args.steps - 1) / max(seconds, 1e-9)
        print(f"{size} processes: {rate:.0f} samples/s, {sent} bytes sent by each for a step")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

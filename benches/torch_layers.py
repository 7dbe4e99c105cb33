"""A training step of `TTEmbeddingBag` on FBTT's shape: 11,000,000 x 64, rank 32, 512 bags of 20 uniform indices, SGD, one thread.

    pip install ./python torch
    cargo bench -p ttrec-benches --bench train --no-run
    python benches/torch_layers.py

Forward, backward and step of the layer with torch.optim.SGD, of a fused layer, of two `torch.bmm` with autograd and
torch.optim.SGD, and of the Rust trainer (benches/train.rs, which has the same shape, gradient and learning rate) take turns.
Prints the median of each in ms, and the median of the ratios of a round.
"""

import re
import statistics
import subprocess
import time

import torch
import ttrec.torch
from ttrec.torch import plain

ROWS, DIM, BAGS, BAG, BATCHES, ROUNDS = 11_000_000, 64, 512, 20, 20, 5
SHAPE = {"row_factors": [200, 220, 250], "column_factors": [4, 4, 4], "rank": 32, "mode": "sum"}
# So small that the values hardly change, however many steps are taken.
RATE = 1e-6
GRADIENT = ((torch.arange(BAGS * DIM) % 13) / 8 - 0.75).view(BAGS, DIM)
RUST = "cargo bench -q -p ttrec-benches --bench train -- fbtt-R32/forward-and-step --warm-up-time 0.5 --measurement-time 2"


class Bmm(torch.nn.Module):
    """FBTT's formula: each lookup multiplies one slice of each core."""

    def __init__(self, cores):
        super().__init__()
        self.cores = torch.nn.ParameterList(core.detach().clone() for core in cores)

    def forward(self, indices):
        ranks = [SHAPE["rank"]] * 2
        rows = plain.rows(self.cores, indices.view(-1), SHAPE["row_factors"], SHAPE["column_factors"], ranks, False)
        return rows.view(BAGS, BAG, DIM).sum(1)


def steps(layer, batches, optimizer=None):
    """The median time of a step in ms."""
    times = []
    for indices in batches:
        start = time.perf_counter()
        if optimizer:
            optimizer.zero_grad()
        layer(indices).backward(GRADIENT)
        if optimizer:
            optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def rust():
    done = subprocess.run(RUST.split(), check=True, capture_output=True, text=True)
    value, unit = re.search(r"time: +\[\S+ \S+ (\S+) (\S+)", done.stdout).groups()
    return float(value) * {"ms": 1, "µs": 1e-3}[unit]


def main():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    batches = [torch.randint(ROWS, (BAGS, BAG)) for _ in range(BATCHES)]
    layer = ttrec.torch.TTEmbeddingBag(ROWS, DIM, **SHAPE)
    fused = ttrec.torch.TTEmbeddingBag(ROWS, DIM, **SHAPE, fused="sgd", lr=RATE)
    fused.load_state_dict(layer.state_dict())
    bmm = Bmm(layer.tt_cores)
    for other in (layer, fused):
        torch.testing.assert_close(other(batches[0]), bmm(batches[0]), rtol=1e-4, atol=1e-6)
    sgd = [torch.optim.SGD(module.parameters(), lr=RATE) for module in (layer, bmm)]

    rounds = []
    for _ in range(ROUNDS):
        rounds.append({
            "Rust trainer": rust(),
            "fused layer": steps(fused, batches),
            "layer": steps(layer, batches, sgd[0]),
            "bmm": steps(bmm, batches[:5], sgd[1]),
        })
        print(" ".join(f"{name} {ms:.2f}" for name, ms in rounds[-1].items()), flush=True)
    for name in rounds[0]:
        print(f"{name:13} {statistics.median(r[name] for r in rounds):8.2f} ms")
    for above, below in (("fused layer", "Rust trainer"), ("layer", "Rust trainer"), ("bmm", "fused layer"), ("bmm", "layer")):
        ratios = [r[above] / r[below] for r in rounds]
        print(f"{above} / {below}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

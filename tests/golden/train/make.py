"""Writes torch.txt: steps of PyTorch's optimisers on tensor-train and dense tables, for tests/train.rs.

Needs PyTorch, which nothing else here does:

    python3 tests/golden/train/make.py > tests/golden/train/torch.txt

Cores are looked up slice by slice with sparse gradients and multiplied out by einsum; dense tables are
torch.nn.functional.embedding_bag. Row-wise Adagrad, which PyTorch does not have, is DLRM's RWSAdagrad on the same gradients.
One array to a line, after its name.
"""

import torch
import torch.nn.functional as F

torch.manual_seed(20210405)
LEARNING_RATE = 0.05
SHAPES = [
    ("d2", [3, 4], [2, 3], [2], 11),
    ("d3", [3, 2, 4], [2, 1, 3], [2, 3], 22),
    ("d4", [2, 3, 1, 4], [1, 2, 2, 2], [2, 3, 2], 24),
]
OPTIMIZERS = ["sgd", "adagrad", "row_wise_adagrad", "adam"]
MODES = ["sum", "mean", "weighted"]
# Two steps that touch different slices; rows twice in a bag and in two bags, and empty bags.
BATCHES = [([7, 0, 7, 3, 0, 10, 3], [0, 3, 3, 6, 7]), ([10, 1, 2, 1], [0, 0, 3, 4, 4])]


def line(name, values):
    print(name, *(f"{x:.9g}" if isinstance(x, float) else x for x in values))


def rows_of(cores, p, q, ranks, indices):
    r = [1, *ranks, 1]
    x, stride = torch.ones(len(indices), 1, 1), torch.tensor(p).prod().item()
    for k, core in enumerate(cores):
        stride //= p[k]
        digits = indices // stride % p[k]
        slices = F.embedding(digits, core, sparse=True).view(-1, r[k], q[k] * r[k + 1])
        x = torch.einsum("bmr,brn->bmn", x, slices).reshape(len(indices), -1, r[k + 1])
    return x.reshape(len(indices), -1)


def pool(rows, offsets, weights, mode):
    if mode == "weighted":
        rows = rows * weights[:, None]
    bags = []
    for start, end in zip(offsets, offsets[1:]):
        total = rows[start:end].sum(0)
        bags.append(total / (end - start) if mode == "mean" and end > start else total)
    return torch.stack(bags)


class RowWiseAdagrad:
    """facebookresearch/dlrm, optim/rwsadagrad.py, sparse gradients."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.sums = [torch.zeros(x.shape[0]) for x in parameters]

    def step(self):
        for x, sums in zip(self.parameters, self.sums):
            grad = x.grad.coalesce()
            at, values = grad.indices()[0], grad.values()
            sums[at] += values.pow(2).mean(1)
            x.data[at] -= LEARNING_RATE * values / (sums[at].sqrt() + 1e-10)[:, None]


def optimizer(name, parameters):
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=LEARNING_RATE)
    if name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=LEARNING_RATE)
    if name == "adam":
        return torch.optim.SparseAdam(parameters, lr=LEARNING_RATE)
    return RowWiseAdagrad(parameters)


def case(name, kind, parameters, dim, forward, mode):
    line("case", [name])
    line("optimizer", [kind])
    line("mode", [mode])
    for k, values in enumerate(parameters):
        line(f"before.{k}", values.detach().flatten().tolist())
    stepper = optimizer(kind, parameters)
    for indices, offsets in BATCHES:
        weights = torch.randn(len(indices))
        gradient = torch.randn(len(offsets) - 1, dim)
        for x in parameters:
            x.grad = None
        pooled = forward(torch.tensor(indices), offsets, weights)
        pooled.backward(gradient)
        stepper.step()
        line("indices", indices)
        line("offsets", offsets)
        line("weights", weights.tolist())
        line("gradient", gradient.flatten().tolist())
        line("pooled", pooled.detach().flatten().tolist())
        for k, values in enumerate(parameters):
            line(f"after.{k}", values.detach().flatten().tolist())


def main():
    print(f"# torch {torch.__version__}")
    line("learning_rate", [LEARNING_RATE])
    for at, kind in enumerate(OPTIMIZERS):
        for shape_at, (name, p, q, ranks, n) in enumerate(SHAPES):
            mode = MODES[(at + shape_at) % len(MODES)]
            r = [1, *ranks, 1]
            line("shape", [name])
            line("num_embeddings", [n])
            line("p", p)
            line("q", q)
            line("ranks", ranks)
            cores = [torch.randn(p[k], r[k] * q[k] * r[k + 1], requires_grad=True) for k in range(len(p))]
            forward = lambda i, o, w: pool(rows_of(cores, p, q, ranks, i), o, w, mode)
            case(f"{name}-{kind}-{mode}", kind, cores, torch.tensor(q).prod().item(), forward, mode)
        for mode in MODES:
            line("shape", ["dense"])
            line("num_embeddings", [11])
            rows = torch.randn(11, 5, requires_grad=True)

            def forward(indices, offsets, weights):
                weights = weights if mode == "weighted" else None
                mean_or_sum = "mean" if mode == "mean" else "sum"
                offsets = torch.tensor(offsets)
                return F.embedding_bag(
                    indices, rows, offsets, mode=mean_or_sum, per_sample_weights=weights, sparse=True,
                    include_last_offset=True,
                )

            case(f"dense-{kind}-{mode}", kind, [rows], 5, forward, mode)


if __name__ == "__main__":
    main()

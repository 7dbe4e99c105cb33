"""Writes dlrm.txt: two steps of a small DLRM by PyTorch, for tests/train_dlrm.rs.

Needs PyTorch, which nothing else here does:

    python3 tests/golden/train/make_dlrm.py > tests/golden/train/dlrm.txt

The model is written with torch.nn.functional after facebookresearch/dlrm (dlrm_s_pytorch.py): bottom MLP, a tensor-train, a dense
and a quotient-remainder table, dot interaction, top MLP, BCE with logits. Gradients of tables are sparse, those of layers dense.
One array to a line, after its name.
"""

import torch
import torch.nn.functional as F

from make import line, pool, rows_of

torch.manual_seed(20190531)
LAYERS_RATE, TABLES_RATE = 0.05, 0.2
DIM, DENSE = 4, 3
P, Q, RANKS, TT_ROWS = [3, 2, 4], [1, 2, 2], [2, 3], 22
DENSE_ROWS, QR_ROWS, REMAINDERS = 9, 11, 4
ROWS = [TT_ROWS, DENSE_ROWS, QR_ROWS]
SAMPLES = 6
R = [1, *RANKS, 1]
LAYERS = [(6, DENSE), (DIM, 6), (5, DIM + 6), (1, 5)]
BEFORE = [x for n, m in LAYERS for x in (torch.randn(n, m) * (2 / (n + m)) ** 0.5, torch.randn(n) * (1 / n) ** 0.5)]
BEFORE += [0.8 * torch.randn(P[k], R[k] * Q[k] * R[k + 1]) for k in range(3)]
BEFORE += [0.8 * torch.randn(n, DIM) for n in (DENSE_ROWS, -(-QR_ROWS // REMAINDERS), REMAINDERS)]
NUM_LAYER_PARAMETERS = 2 * len(LAYERS)


def batch():
    bags = []
    for rows in ROWS:
        lengths = torch.randint(0, 4, (SAMPLES,))
        offsets = [0, *lengths.cumsum(0).tolist()]
        indices = torch.randint(0, rows, (offsets[-1],))
        bags.append((indices, offsets, torch.randn(len(indices))))
    return torch.randn(SAMPLES, DENSE), torch.randint(0, 2, (SAMPLES,)).float(), bags


BATCHES = [batch(), batch()]


def linear(x, parameters, at):
    return F.linear(x, parameters[2 * at], parameters[2 * at + 1])


def logits(parameters, dense, bags):
    bottom = F.relu(linear(F.relu(linear(dense, parameters, 0)), parameters, 1))
    tt, rows, quotients, remainders = parameters[8:11], *parameters[11:14]
    lookup = lambda rows, indices: F.embedding(indices, rows, sparse=True)
    (i0, o0, _), (i1, o1, _), (i2, o2, w2) = bags
    vectors = [
        bottom,
        pool(rows_of(tt, P, Q, RANKS, i0), o0, None, "sum"),
        pool(lookup(rows, i1), o1, None, "mean"),
        pool(lookup(quotients, i2 // REMAINDERS), o2, w2, "weighted")
        * pool(lookup(remainders, i2 % REMAINDERS), o2, w2, "weighted"),
    ]
    products = torch.bmm(torch.stack(vectors, 1), torch.stack(vectors, 2))
    i, j = zip(*((i, j) for i in range(len(vectors)) for j in range(i)))
    z = torch.cat([bottom, products[:, list(i), list(j)]], 1)
    return linear(F.relu(linear(z, parameters, 2)), parameters, 3)[:, 0]


class RowWiseAdagrad:
    """facebookresearch/dlrm, optim/rwsadagrad.py, of sparse gradients."""

    def __init__(self, parameters, rate):
        self.parameters, self.rate = parameters, rate
        self.sums = [torch.zeros(x.shape[0]) for x in parameters]

    def step(self):
        for x, sums in zip(self.parameters, self.sums):
            grad = x.grad.coalesce()
            at, values = grad.indices()[0], grad.values()
            sums[at] += values.pow(2).mean(1)
            x.data[at] -= self.rate * values / (sums[at].sqrt() + 1e-10)[:, None]


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, torch.optim.SGD),
    "adagrad": (torch.optim.Adagrad, torch.optim.Adagrad),
    "row_wise_adagrad": (torch.optim.Adagrad, RowWiseAdagrad),
    "adam": (torch.optim.Adam, torch.optim.SparseAdam),
}

print(f"# torch {torch.__version__}")
for k, values in enumerate(BEFORE):
    line(f"before.{k}", values.flatten().tolist())
for step, (dense, labels, bags) in enumerate(BATCHES):
    line(f"dense.{step}", dense.flatten().tolist())
    line(f"labels.{step}", labels.tolist())
    for table, (indices, offsets, weights) in enumerate(bags):
        line(f"indices.{step}.{table}", indices.tolist())
        line(f"offsets.{step}.{table}", offsets)
        line(f"weights.{step}.{table}", weights.tolist())
for name, (of_layers, of_tables) in OPTIMIZERS.items():
    parameters = [x.clone().requires_grad_() for x in BEFORE]
    steppers = [
        of_layers(parameters[:NUM_LAYER_PARAMETERS], LAYERS_RATE),
        of_tables(parameters[NUM_LAYER_PARAMETERS:], TABLES_RATE),
    ]
    losses = []
    for dense, labels, bags in BATCHES:
        for x in parameters:
            x.grad = None
        loss = F.binary_cross_entropy_with_logits(logits(parameters, dense, bags), labels)
        loss.backward()
        for stepper in steppers:
            stepper.step()
        losses.append(loss.item())
    line(f"loss.{name}", losses)
    for k, values in enumerate(parameters):
        line(f"{name}.{k}", values.detach().flatten().tolist())

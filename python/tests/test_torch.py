"""The layers of `ttrec.torch`, against torch's own over the whole table in double precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from conftest import tt_table

import ttrec

torch = pytest.importorskip("torch")
tt = pytest.importorskip("ttrec.torch")

from torch import nn
from torch.nn.functional import embedding_bag

ORDERS = ("most-significant-first", "least-significant-first")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def table_of(layer, dtype=torch.float64):
    """The whole table, differentiable, by numpy's own order of axes; and its cores."""
    cores = [core.detach().to(dtype).requires_grad_() for core in layer.tt_cores]
    bounds = [1, *layer.ranks, 1]
    table = torch.ones((1, 1, 1), dtype=dtype)
    for k, (core, p) in enumerate(zip(cores, layer.row_factors)):
        core = core.reshape(p, bounds[k], layer.column_factors[k], bounds[k + 1])
        # The digits of rows that are least significant come last.
        rows = "pi" if layer.least_significant_first else "ip"
        table = torch.einsum(f"icr,prqs->{rows}cqs", table, core)
        i, p, c, q, s = table.shape
        table = table.reshape(i * p, c * q, s)
    return table[: layer.num_embeddings, :, 0], cores


def close(found, expected, bound=1e-5):
    error = (found.detach().double() - expected).norm() / expected.norm().clamp(min=1e-30)
    assert error <= bound, float(error)


def bags():
    indices = torch.randint(0, 1000, (400,))
    indices[::7] = 3
    # The first bag, one between and the last one are empty.
    return indices, torch.tensor([0, 0, 5, 5, 6, 300, 400])


def test_reference_is_numpys():
    layer = tt.TTEmbeddingBag(100, 12, rank=4)
    bounds = [1, *layer.ranks, 1]
    shapes = zip(layer.row_factors, bounds, layer.column_factors, bounds[1:])
    cores = [c.detach().numpy().reshape(s) for c, s in zip(layer.tt_cores, shapes)]
    np.testing.assert_allclose(table_of(layer)[0].detach(), tt_table(cores, 100), rtol=1e-5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_cores", (2, 3, 4))
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("padding_idx", (None, 3, -1))
@pytest.mark.parametrize("mode", ("sum", "mean", "max"))
def test_bags(mode, padding_idx, weighted, num_cores, order, dtype):
    """Values and gradients of both ways: kernels (float32) and operations of torch."""
    if weighted and mode != "sum":
        return
    options = {"mode": mode, "padding_idx": padding_idx, "order": order, "dtype": dtype}
    layer = tt.TTEmbeddingBag(1000, 32, rank=8, num_cores=num_cores, **options)
    indices, offsets = bags()
    weights = torch.randn(400, dtype=dtype, requires_grad=True) if weighted else None
    exact = weights.detach().double().requires_grad_() if weighted else None
    table, cores = table_of(layer)
    expected = embedding_bag(
        indices, table, offsets, mode=mode, per_sample_weights=exact, padding_idx=padding_idx
    )
    found = layer(indices, offsets, weights)
    assert found.dtype == dtype
    close(found, expected)
    gradient = torch.randn(expected.shape, dtype=torch.float64)
    found.backward(gradient.to(dtype))
    expected.backward(gradient)
    for core, exact_core in zip(layer.tt_cores, cores):
        close(core.grad, exact_core.grad)
    if weighted:
        close(weights.grad, exact.grad)
    with torch.no_grad():
        close(layer(indices, offsets, weights), expected.detach())


def test_large_batch():
    """So many lookups that the kernels divide them: the same bits on one thread and on two."""
    options = {"mode": "sum", "row_factors": [20, 20, 25], "column_factors": [2, 2, 4]}
    layer = tt.TTEmbeddingBag(10_000, 16, rank=12, **options)
    indices = (torch.rand(1000, 20) ** 3 * 10_000).long()
    weights = torch.randn(1000, 20, requires_grad=True)
    exact = weights.detach().double().requires_grad_()
    table, cores = table_of(layer)
    expected = (table[indices] * exact[:, :, None]).sum(1)
    gradient = torch.randn(expected.shape, dtype=torch.float64)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            pooled = layer(indices, per_sample_weights=weights)
            learned = [*layer.tt_cores, weights]
            found.append([pooled, *torch.autograd.grad(pooled, learned, gradient.float())])
    finally:
        torch.set_num_threads(before)
    expected.backward(gradient)
    for one, two, exact in zip(*found, [expected, *(core.grad for core in cores), exact.grad]):
        assert torch.equal(one, two)
        close(one, exact.detach())


def test_forms_of_bags():
    layer = tt.TTEmbeddingBag(1000, 32, rank=8, mode="sum")
    table, _ = table_of(layer)
    rows = torch.randint(0, 1000, (20, 6))
    weights = torch.randn(20, 6)
    for dtype in (torch.int32, torch.int64):
        close(layer(rows.to(dtype)), table[rows].sum(1))
        weighted = (table[rows] * weights[:, :, None]).sum(1)
        close(layer(rows.to(dtype), per_sample_weights=weights), weighted)
        flat, offsets = rows.reshape(-1).to(dtype), torch.arange(0, 120, 6)
        close(layer(flat, offsets), table[rows].sum(1))
    last = tt.TTEmbeddingBag(1000, 32, rank=8, mode="sum", include_last_offset=True)
    last.load_state_dict(layer.state_dict())
    close(last(flat, torch.arange(0, 121, 6)), table[rows].sum(1))
    transposed = rows.t().contiguous().t()
    close(layer(transposed), table[rows].sum(1))
    assert layer(torch.zeros((0, 3), dtype=torch.int64)).shape == (0, 32)
    empty = layer(torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(empty, torch.zeros(3, 32))
    empty.sum().backward()
    assert all(torch.equal(core.grad, torch.zeros_like(core)) for core in layer.tt_cores)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_embedding(dtype):
    layer = tt.TTEmbedding(1000, 32, padding_idx=3, rank=8, dtype=dtype)
    table, cores = table_of(layer)
    indices = torch.tensor([[1, 3, 999], [5, 3, 1]])
    expected = table[indices] * (indices != 3)[:, :, None]
    found = layer(indices)
    close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for core, exact in zip(layer.tt_cores, cores):
        close(core.grad, exact.grad)
    assert layer(torch.tensor(5)).shape == (32,)
    close(layer.to_dense(), table.detach())


def test_refusals():
    layer = tt.TTEmbeddingBag(100, 12, rank=4, mode="mean")
    one, start = torch.tensor([1]), torch.tensor([0])
    with pytest.raises(IndexError, match="index 100 at position 0"):
        layer(torch.tensor([100]), start)
    with pytest.raises(IndexError, match="negative"):
        layer(torch.tensor([-1]), start)
    with pytest.raises(ValueError, match="offset"):
        layer(one, torch.tensor([1]))
    with pytest.raises(ValueError, match="expected offsets"):
        layer(one)
    with pytest.raises(ValueError, match="two dimensions"):
        layer(one[None], start)
    with pytest.raises(ValueError, match="expected sum"):
        layer(one, start, torch.ones(1))
    with pytest.raises(TypeError, match="expected torch.int32"):
        layer(torch.ones(1), start)
    wrong = (
        {"mode": "avg"},
        {"order": "no"},
        {"padding_idx": 100},
        {"fused": "adam", "lr": 0.1},
        {"fused": "sgd"},
        {"fused": "sgd", "lr": float("nan")},
        {"lr": 0.1},
        {"rank": 0},
        {"rank": [4]},
        {"row_factors": [2, 2, 2]},
        {"column_factors": [2, 2, 2]},
        {"row_factors": [10, 10], "column_factors": [2, 2, 3]},
        {"num_cores": 1},
    )
    for options in wrong:
        with pytest.raises(ValueError):
            tt.TTEmbeddingBag(100, 12, **options)


def test_gradcheck():
    layer = tt.TTEmbeddingBag(30, 8, rank=3, dtype=torch.float64)
    indices, offsets = torch.tensor([1, 5, 5, 29]), torch.tensor([0, 1, 4])
    weights = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def pooled(weights, *cores):
        return layer._pool_cores(cores, indices, offsets, weights, "sum", None)

    assert torch.autograd.gradcheck(pooled, (weights, *layer.tt_cores))
    assert torch.autograd.gradgradcheck(pooled, (weights, *layer.tt_cores))


def test_second_derivatives_of_kernels_raise():
    layer = tt.TTEmbeddingBag(30, 8, rank=3, mode="sum")
    loss = layer(torch.tensor([[1, 5]])).square().sum()
    (gradient, *_) = torch.autograd.grad(loss, list(layer.tt_cores), create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


# Torch warns of what its own check does.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("mode", ("sum", "mean"))
@pytest.mark.parametrize("padding_idx", (None, 5))
def test_opcheck(mode, padding_idx):
    layer = tt.TTEmbeddingBag(60, 8, rank=3)
    indices, offsets = torch.tensor([1, 5, 5, 59]), torch.tensor([0, 1, 4])
    weights = torch.ones(4, requires_grad=True) if mode == "sum" else None
    rest = (mode, padding_idx, *layer._shape())
    args = (list(layer.tt_cores), indices, offsets, weights, *rest)
    torch.library.opcheck(torch.ops.ttrec.tt_bag.default, args)
    cores = [core.detach() for core in layer.tt_cores]
    weights = None if weights is None else weights.detach()
    args = (torch.randn(2, 8), weights is not None, cores, indices, offsets, weights, *rest)
    torch.library.opcheck(torch.ops.ttrec.tt_bag_backward.default, args)


class Model(nn.Module):
    """Two tables and a layer."""

    def __init__(self, **options):
        super().__init__()
        self.item = tt.TTEmbeddingBag(1000, 16, rank=8, mode="sum", **options)
        self.user = nn.EmbeddingBag(200, 16, mode="mean")
        self.top = nn.Sequential(nn.Linear(33, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())

    def forward(self, items, offsets, users):
        item, user = self.item(items, offsets), self.user(users)
        dot = (item * user).sum(1, keepdim=True)
        return self.top(torch.cat([user, item, dot], 1))[:, 0]


def example(batch=10):
    items = torch.randint(0, 1000, (5 * batch,))
    return items, torch.arange(0, 5 * batch, 5), torch.randint(0, 200, (batch, 3))


def test_compile_and_export():
    model, inputs = Model(), example()
    expected = model(*inputs)
    exported = torch.export.export(model, inputs)
    assert torch.equal(exported.module()(*inputs), expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(*inputs)
    assert torch.allclose(found, expected, rtol=1e-6)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    found.sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("fused", ("sgd", "adagrad", "rowwise_adagrad"))
@pytest.mark.parametrize("mode", ("sum", "mean", "max"))
def test_fused(fused, mode):
    """Steps of kernels and of torch; and those of torch's optimiser, where it has the same."""
    options = {"fused": fused, "lr": 0.1, "padding_idx": 3, "mode": mode}
    kernels = tt.TTEmbeddingBag(1000, 32, rank=8, **options)
    plain = tt.TTEmbeddingBag(1000, 32, rank=8, dtype=torch.float64, **options)
    plain.load_state_dict(kernels.state_dict())
    del options["fused"], options["lr"]
    dense = tt.TTEmbeddingBag(1000, 32, rank=8, dtype=torch.float64, **options)
    dense.load_state_dict({k: v for k, v in plain.state_dict().items() if "optimizer" not in k})
    makers = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
    optimizer = makers[fused](dense.parameters(), lr=0.1) if fused in makers else None
    before = dense.to_dense()
    for _ in range(3):
        indices, offsets = bags()
        for layer in (kernels, plain, dense):
            (layer(indices, offsets) - 1).square().sum().backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
    assert all(core.grad is None for core in kernels.tt_cores)
    close(kernels.to_dense(), plain.to_dense(), 1e-4)
    assert not torch.allclose(plain.to_dense(), before)
    if optimizer:
        close(plain.to_dense(), dense.to_dense(), 1e-9)


def test_any_optimizer():
    layer = tt.TTEmbeddingBag(1000, 16, rank=8, mode="sum")
    target = torch.randn(50, 16)
    indices = torch.randint(0, 1000, (50, 2))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (layer(indices) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


def test_initial_values():
    """The variance that DLRM's tables begin with."""
    rows = tt.TTEmbeddingBag(3000, 64, rank=16).to_dense()
    assert abs(rows.var().item() * 3 * 3000 - 1) < 0.1


def test_from_pretrained():
    source = tt.TTEmbeddingBag(512, 16, rank=4, row_factors=[8, 8, 8], column_factors=[2, 2, 4])
    dense = source.to_dense()
    options = {"row_factors": [8, 8, 8], "column_factors": [2, 2, 4]}
    close(tt.TTEmbeddingBag.from_pretrained(dense, 4, **options).to_dense(), dense.double())
    # The widest column factor first: the cores of a blob are then in reverse.
    wide = tt.TTEmbedding.from_pretrained(
        dense, 32, row_factors=[8, 8, 8], column_factors=[4, 2, 2]
    )
    close(wide.to_dense(), dense.double(), 1e-4)
    rough = tt.TTEmbeddingBag.from_pretrained(torch.randn(500, 12), 3)
    assert rough.ranks == (3, 3) and rough.num_embeddings == 500


def test_blobs(tmp_path):
    """The blob of a trained layer, and that of the file which torch.save writes of it."""
    for order in ORDERS:
        layer = tt.TTEmbeddingBag(1000, 32, rank=8, order=order)
        blob = layer.save_blob(tmp_path / "layer.ttr", name="item")
        rows = blob["item"].lookup(np.arange(1000))
        close(torch.from_numpy(rows), layer.to_dense().double())
        indices, offsets = bags()
        found = blob["item"].pool(indices, offsets, mode="mean")
        assert np.array_equal(found, layer(indices, offsets).detach().numpy())
        torch.save(layer.state_dict(), tmp_path / "layer.pt")
        spec = tt.spec_of(layer, name="item")
        assert (
            ttrec.convert(tmp_path / "layer.pt", spec, progress=False).to_bytes() == blob.to_bytes()
        )
        loaded = tt.load_fbtt(tmp_path / "layer.pt", 1000, layer.column_factors, mode="mean")
        assert torch.equal(loaded(indices, offsets), layer(indices, offsets))


def test_model(tmp_path):
    """Probabilities of a whole model, in torch and from its blob."""
    model, inputs = Model(), example()
    layers = {"top": "top.", "tables": ["user", "item"], "interaction": "cat"}

    class Cat(Model):
        def __init__(self):
            super().__init__()
            self.top = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())

        def forward(self, items, offsets, users):
            return self.top(torch.cat([self.user(users), self.item(items, offsets)], 1))[:, 0]

    model = Cat()
    blob = tt.save_blob(model, tmp_path / "model.ttr", model=layers)
    items, offsets, users = inputs
    ranker = blob.ranker()
    assert ranker.tables == ["user", "item"] and ranker.poolings == ["mean", "sum"]
    found = ranker.score(None, {"user": users, "item": (items, offsets)})
    assert np.abs(found - model(*inputs).detach().numpy()).max() < 1e-6
    torch.save(model.state_dict(), tmp_path / "model.pt")
    spec = tt.spec_of(model, model=layers)
    assert ttrec.convert(tmp_path / "model.pt", spec, progress=False).to_bytes() == blob.to_bytes()


def test_compress(tmp_path):
    # A table that is nearly a tensor train.
    source = tt.TTEmbeddingBag(1000, 16, rank=4, row_factors=[10, 10, 10])
    model = Model()
    model.item = nn.EmbeddingBag(1000, 16, mode="sum", include_last_offset=False)
    with torch.no_grad():
        model.item.weight.copy_(source.to_dense())
    dense, inputs = copy.deepcopy(model), example()
    options = {"rank": 4, "row_factors": [10, 10, 10], "column_factors": [2, 2, 4]}
    options["column_factors"] = list(source.column_factors)
    assert tt.compress(model, {"item": options}) is model
    assert isinstance(model.item, tt.TTEmbeddingBag) and model.item.mode == "sum"
    assert type(model.user) is nn.EmbeddingBag
    close(model(*inputs), dense(*inputs).detach().double(), 1e-5)
    plan = ttrec.plan(
        dense, spec='[[table]]\ntensor = "item.weight"\n', budget="10%", progress=False
    )
    planned = tt.compress(copy.deepcopy(dense), plan)
    assert plan.tables[0]["representation"] != "tt" or isinstance(planned.item, tt.TTEmbeddingBag)
    both = tt.compress(copy.deepcopy(dense), 8)
    assert isinstance(both.user, tt.TTEmbeddingBag) and both.user.mode == "mean"
    alone = tt.compress(nn.Embedding(50, 8, padding_idx=0), 4)
    assert isinstance(alone, tt.TTEmbedding) and alone.padding_idx == 0
    with pytest.raises(KeyError, match="no.*user"):
        tt.compress(model, {"no": 3})
    with pytest.raises(ValueError, match="max_norm"):
        tt.compress(nn.EmbeddingBag(50, 8, max_norm=1.0), 3)


@pytest.mark.parametrize("operation", ("mult", "add", "concat"))
@pytest.mark.parametrize("mode", ("sum", "mean"))
def test_quotient_remainder(operation, mode, tmp_path):
    layer = tt.QuotientRemainderEmbeddingBag(100, 8, 7, operation=operation, mode=mode)
    indices = torch.randint(0, 100, (6, 4))
    parts = [
        getattr(weight.double()[at], mode)(1)
        for weight, at in ((layer.weight_q, indices // 7), (layer.weight_r, indices % 7))
    ]
    expected = {"mult": parts[0] * parts[1], "add": sum(parts), "concat": torch.cat(parts, 1)}
    close(layer(indices), expected[operation].detach())
    blob = tt.save_blob(layer, tmp_path / "x.ttr")
    found = blob["table"].pool(indices, mode=mode)
    close(torch.from_numpy(found), expected[operation].detach())


def test_hashed(tmp_path):
    layer = tt.HashedEmbeddingBag(100, 8, 13, mode="sum")
    indices = torch.randint(0, 100, (6, 4))
    close(layer(indices), layer.weight.detach().double()[indices % 13].sum(1))
    blob = tt.save_blob(layer, tmp_path / "x.ttr")
    assert blob["table"].num_embeddings == 100
    close(
        torch.from_numpy(blob["table"].pool(indices, mode="sum")), layer(indices).detach().double()
    )


@pytest.mark.parametrize("mode", ("sum", "mean", "max"))
@pytest.mark.parametrize("combine", ("concat", "add"))
@pytest.mark.parametrize("rank", (None, 4))
def test_codes(rank, combine, mode, tmp_path):
    dense = torch.randn(300, 2) @ torch.randn(2, 8)
    options = {"combine": combine, "bits": 6, "mode": mode, "padding_idx": 3}
    if rank:
        options["rank"] = rank
    layer = tt.CodesEmbeddingBag.from_pretrained(dense, 2, **options)
    assert (layer.projection is not None) == (rank is not None)
    books, numbers = layer.books.detach().double(), layer.codes
    parts = [books[book][numbers[:, book]] for book in range(2)]
    rows = torch.cat(parts, 1) if combine == "concat" else parts[0] + parts[1]
    if rank:
        rows = rows @ layer.projection.detach().double()
    assert (rows - dense).norm() < 0.5 * dense.norm()
    indices = torch.randint(0, 300, (20, 5))
    expected = embedding_bag(indices, rows, mode=mode, padding_idx=3)
    close(layer(indices), expected)
    layer(indices).sum().backward()
    assert layer.books.grad.abs().sum() > 0
    table = tt.save_blob(layer, tmp_path / "x.ttr")["table"]
    assert table.representation == "codebook"
    close(torch.from_numpy(table.pool(indices, mode=mode, padding_idx=3)), expected)


def test_copies(tmp_path):
    layer = tt.TTEmbeddingBag(100, 12, rank=4, fused="adagrad", lr=0.1)
    layer(torch.tensor([[1, 2]])).sum().backward()
    again = tt.TTEmbeddingBag(100, 12, rank=4, fused="adagrad", lr=0.1)
    again.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), again):
        assert torch.equal(other.to_dense(), layer.to_dense())
        assert torch.equal(other.optimizer_state_0, layer.optimizer_state_0)

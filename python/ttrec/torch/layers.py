"""Layers that take the place of `torch.nn.EmbeddingBag` and `torch.nn.Embedding`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._ttrec import Blob, suggest_factors
from ..conversion import Source, convert
from . import ops, plain

#: The variance of a standard normal beyond two standard deviations.
_TAIL_VARIANCE = 5.746431065852677
#: Rows that `to_dense` computes at once.
_AT_ONCE = 1 << 16

_ORDERS = ("most-significant-first", "least-significant-first")
_MODES = ("sum", "mean", "max")

_Layer = TypeVar("_Layer", bound="_TensorTrain")


class _TensorTrain(nn.Module):
    """The cores of a tensor train, with the names and shapes that FBTT-Embedding gives them.

    `tt_cores.k` is 1 x p_k x (r_k q_k r_{k+1}): p are the row factors, q the column factors and r
    the ranks, which begin and end with 1.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        rank: int | Sequence[int] = 16,
        row_factors: Sequence[int] | None = None,
        column_factors: Sequence[int] | None = None,
        num_cores: int = 3,
        order: str = _ORDERS[0],
        fused: str | None = None,
        lr: float | None = None,
        eps: float = 1e-10,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if order not in _ORDERS:
            raise ValueError(f"order {order!r}: expected one of {_ORDERS}")
        if fused not in (None, "sgd", "adagrad", "rowwise_adagrad"):
            raise ValueError(f"fused {fused!r}: expected sgd, adagrad or rowwise_adagrad")
        if (fused is None) != (lr is None):
            raise ValueError("fused and lr: give both or neither")
        if lr is not None and not (lr >= 0 and math.isfinite(lr)):
            raise ValueError(f"lr {lr}: expected a number from 0 on")
        given = next((len(f) for f in (row_factors, column_factors) if f is not None), num_cores)
        rows, columns = suggest_factors(num_embeddings, embedding_dim, given)
        self.row_factors = tuple(row_factors or rows)
        self.column_factors = tuple(column_factors or columns)
        if math.prod(self.column_factors) != embedding_dim:
            raise ValueError(
                f"column_factors {list(self.column_factors)}: their product is "
                f"{math.prod(self.column_factors)}, but embedding_dim is {embedding_dim}"
            )
        self.ranks = tuple(self._inner_ranks(rank))
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.order, self.least_significant_first = order, order == _ORDERS[1]
        self.fused, self.lr, self.eps = fused or "", lr or 0.0, eps
        # Refuses what is no shape.
        ops.kernels(*self._shape())
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(f"padding_idx {padding_idx}: the table has {num_embeddings} rows")
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        bounds = [1, *self.ranks, 1]
        shapes = [
            (1, p, bounds[k] * q * bounds[k + 1])
            for k, (p, q) in enumerate(zip(self.row_factors, self.column_factors, strict=True))
        ]
        self.tt_cores = nn.ParameterList(
            nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) for shape in shapes
        )
        steps = plain.strides(self.row_factors, self.least_significant_first)
        self.register_buffer("L", torch.tensor(steps, device=device))
        if fused in ("adagrad", "rowwise_adagrad"):
            for k, core in enumerate(self.tt_cores):
                state = core if fused == "adagrad" else core[..., 0]
                self.register_buffer(f"optimizer_state_{k}", torch.zeros_like(state))
        self.reset_parameters()

    def _inner_ranks(self, rank: int | Sequence[int]) -> Sequence[int]:
        if not isinstance(rank, int):
            return list(rank)
        # Larger ranks than the products on either side add nothing.
        sizes = [p * q for p, q in zip(self.row_factors, self.column_factors, strict=True)]
        sides = [(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes))]
        return [min(rank, *side) for side in sides]

    def _shape(self) -> tuple[Any, ...]:
        factors = (self.row_factors, self.column_factors, self.ranks)
        return self.num_embeddings, *factors, self.least_significant_first

    def reset_parameters(self) -> None:
        """Draw the cores from the sampled Gaussian of TT-Rec (section 3.2).

        An element of a row has the variance 1 / (3 num_embeddings), as in DLRM.
        """
        deviation = (3 * self.num_embeddings) ** -0.5 / math.prod(self.ranks) ** 0.5
        deviation = deviation ** (1 / len(self.tt_cores)) / _TAIL_VARIANCE**0.5
        tail = 0.5 * math.erfc(2 / math.sqrt(2))
        with torch.no_grad():
            for core in self.tt_cores:
                draws = torch.empty(core.shape, dtype=torch.float64, device=core.device)
                below = torch.special.ndtri(draws.uniform_(1e-300, tail))
                signs = torch.randint_like(below, 2) * 2 - 1
                core.copy_(below * signs * deviation)

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of `indices`, an integer tensor of any shape."""
        flat = indices.reshape(-1)
        offsets = torch.arange(flat.shape[0] + 1, dtype=flat.dtype, device=flat.device)
        pooled = self._pool(flat, offsets, None, "sum")
        return pooled.reshape(*indices.shape, self.embedding_dim)

    def _pool(
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, mode: str
    ) -> Tensor:
        cores = list(self.tt_cores)
        bags = (indices, offsets, per_sample_weights, mode, self.padding_idx)
        if self.fused and torch.is_grad_enabled() and cores[0].requires_grad:
            return _FusedBag.apply(self, cores, cores[0], *bags)
        return self._pool_cores(cores, *bags)

    def _pool_cores(
        self,
        cores: Sequence[Tensor],
        indices: Tensor,
        offsets: Tensor,
        per_sample_weights: Tensor | None,
        mode: str,
        padding_idx: int | None,
    ) -> Tensor:
        bags = (indices, offsets, per_sample_weights, mode, padding_idx)
        # The kernels have no gradient of a maximum.
        is_learned_max = mode == "max" and torch.is_grad_enabled() and cores[0].requires_grad
        if ops.suit(cores, per_sample_weights) and not is_learned_max:
            return torch.ops.ttrec.tt_bag(cores, *bags, *self._shape())
        return plain.pool(self._rows(cores, indices), *bags)

    def _rows(self, cores: Sequence[Tensor], indices: Tensor) -> Tensor:
        """The rows of one-dimensional `indices`, computed by torch."""
        return plain.rows(cores, indices, *self._shape()[1:])

    def _step(self, cores: Sequence[Tensor], bags: ops.Bags, gradient: Tensor) -> None:
        """Take a step of the layer's own optimiser."""
        names = (f"optimizer_state_{k}" for k in range(len(cores)))
        state = [] if self.fused == "sgd" else [getattr(self, name) for name in names]
        indices, _, per_sample_weights, mode, _ = bags
        if mode != "max" and ops.suit(cores, per_sample_weights):
            rule = (self.fused, self.lr, self.eps)
            ops.step(self._shape(), cores, state, bags, gradient, *rule)
            return
        with torch.enable_grad():
            copies = [core.detach().clone().requires_grad_() for core in cores]
            pooled = plain.pool(self._rows(copies, indices), *bags)
            gradients = torch.autograd.grad(pooled, copies, gradient)
        for k, (core, of_core) in enumerate(zip(cores, gradients, strict=True)):
            if state:
                squares = of_core**2
                state[k] += squares if self.fused == "adagrad" else squares.mean(-1)
                root = state[k].sqrt() + self.eps
                of_core = of_core / (root if self.fused == "adagrad" else root[..., None])
            core -= self.lr * of_core

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """The whole table, num_embeddings x embedding_dim."""
        device = self.tt_cores[0].device
        ranges = range(0, self.num_embeddings, _AT_ONCE)
        ends = (min(first + _AT_ONCE, self.num_embeddings) for first in ranges)
        parts = zip(ranges, ends, strict=True)
        cores = list(self.tt_cores)
        return torch.cat([self._rows(cores, torch.arange(*part, device=device)) for part in parts])

    @classmethod
    def from_pretrained(
        cls: type[_Layer], dense: Tensor, rank: int | Sequence[int], **options: Any
    ) -> _Layer:
        """The tensor train of this rank that is nearest to a dense table, or nearly so.

        `options` are those of the class, but for another `order` than the default.
        """
        shape = cls(*dense.shape, **{**options, "rank": rank, "device": "meta"})
        if shape.least_significant_first:
            raise ValueError(f"order {shape.order!r}: a dense table becomes cores in the default")
        factors = {
            "row_factors": list(shape.row_factors),
            "column_factors": list(shape.column_factors),
        }
        spec = {"tensor": "table", "representation": "tt", "dtype": "f32", **factors}
        table = {"table": dense.detach().float()}
        blob = convert(table, {"table": [{**spec, "ranks": list(shape.ranks)}]}, progress=False)
        # A table may have smaller ranks than it was asked for.
        _, _, ranks, _, cores = _tensor_train(blob)
        layer = cls(*dense.shape, **{**options, **factors, "rank": ranks})
        layer._set_cores(cores)
        return layer

    @torch.no_grad()
    def _set_cores(self, cores: Sequence[Any]) -> None:
        for parameter, core in zip(self.tt_cores, cores, strict=True):
            parameter.copy_(torch.from_numpy(core).reshape(parameter.shape))

    def save_blob(self, path: str | os.PathLike[str], name: str = "table", **options: Any) -> Blob:
        """Write a blob of this table; see `ttrec.torch.save_blob`."""
        from .models import save_blob

        return save_blob(self, path, name=name, **options)

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, row_factors={self.row_factors}, "
            f"column_factors={self.column_factors}, ranks={self.ranks}"
        )


class _FusedBag(torch.autograd.Function):
    """Pools bags; its backward pass takes a step of the layer's own optimiser.

    `_core` is one of the cores: autograd does not look into lists, and would not call `backward`.
    """

    @staticmethod
    def forward(ctx, layer, cores, _core, *bags):
        indices, offsets, per_sample_weights, *rest = bags
        if per_sample_weights is not None and per_sample_weights.requires_grad:
            raise ValueError("a fused layer gives no gradients of per_sample_weights")
        ctx.layer, ctx.cores, ctx.rest = layer, cores, rest
        ctx.save_for_backward(indices, offsets, per_sample_weights)
        # Only tracing needs the operator. Without it, a call takes less time.
        if ops.suit(cores, per_sample_weights) and not torch.compiler.is_compiling():
            return ops.pool(layer._shape(), cores, bags)
        return layer._pool_cores(cores, *bags)

    @staticmethod
    def backward(ctx, gradient):
        ctx.layer._step(ctx.cores, (*ctx.saved_tensors, *ctx.rest), gradient)
        return (None,) * 8  # one for each argument of `forward`


class TTEmbeddingBag(_TensorTrain):
    """`torch.nn.EmbeddingBag` over a tensor train (TT-Rec).

    Args:
        num_embeddings, embedding_dim, mode, include_last_offset, padding_idx, device, dtype:
            as those of `torch.nn.EmbeddingBag`.
        rank: the largest inner rank, or all of them.
        row_factors, column_factors: one for each core. The row factors multiply to at least
            num_embeddings, the column factors to embedding_dim. By default there are `num_cores`.
        order: which core has the most significant digit of a row: the first one by default.
        fused: "sgd", "adagrad" or "rowwise_adagrad": the backward pass moves the slices that were
            looked up by a step of this optimiser with learning rate `lr`, and leaves no gradient
            for another one.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        mode: str = "mean",
        include_last_offset: bool = False,
        **options: Any,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode {mode!r}: expected one of {_MODES}")
        super().__init__(num_embeddings, embedding_dim, **options)
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        if per_sample_weights is not None and self.mode != "sum":
            raise ValueError(f"per_sample_weights with mode {self.mode!r}: expected sum")
        bags = bags_of(input, offsets, per_sample_weights, self.include_last_offset)
        return self._pool(*bags, self.mode)


class TTEmbedding(_TensorTrain):
    """`torch.nn.Embedding` over a tensor train. The row of `padding_idx` is zeros.

    Takes `num_embeddings`, `embedding_dim` and `padding_idx`, as `torch.nn.Embedding` does, and the
    keywords of `TTEmbeddingBag` for tensor trains.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self.rows(input)


class HashedEmbeddingBag(nn.EmbeddingBag):
    """`torch.nn.EmbeddingBag` whose index i has row i modulo `num_rows`.

    The arguments are those of `torch.nn.EmbeddingBag`, after the number of rows.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, num_rows: int, **options: Any
    ) -> None:
        if not 1 <= num_rows <= num_embeddings:
            raise ValueError(f"num_rows {num_rows}: expected 1 to {num_embeddings}")
        if options.get("padding_idx") is not None:
            raise ValueError("a hashed table has no row of its own for padding_idx")
        super().__init__(num_rows, embedding_dim, **options)
        self.num_indices = num_embeddings

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        return super().forward(input % self.num_embeddings, offsets, per_sample_weights)

    def extra_repr(self) -> str:
        return f"{self.num_indices} indices over {super().extra_repr()}"


class QuotientRemainderEmbeddingBag(nn.Module):
    """A quotient-remainder table as DLRM has it: index i has two rows, i // m and i % m.

    Bags of both are pooled, then multiplied ("mult"), added ("add") or put end to end ("concat").
    `num_remainders` is m. The parameters are `weight_q` and `weight_r`.
    """

    weight_q: nn.Parameter
    weight_r: nn.Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_remainders: int,
        *,
        operation: str = "mult",
        mode: str = "mean",
        include_last_offset: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if operation not in ("mult", "add", "concat"):
            raise ValueError(f"operation {operation!r}: expected mult, add or concat")
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode {mode!r}: expected sum or mean")
        if not 1 <= num_remainders <= num_embeddings:
            raise ValueError(f"num_remainders {num_remainders}: expected 1 to {num_embeddings}")
        if operation == "concat" and embedding_dim % 2:
            raise ValueError(f"embedding_dim {embedding_dim}: two equal parts need an even number")
        columns = embedding_dim // 2 if operation == "concat" else embedding_dim
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.num_remainders, self.operation, self.mode = num_remainders, operation, mode
        self.include_last_offset = include_last_offset
        num_quotients = -(-num_embeddings // num_remainders)
        bound = num_embeddings**-0.5
        # Of two factors, each has the root of the product's deviation.
        bound = bound**0.5 if operation == "mult" else bound
        for name, count in (("weight_q", num_quotients), ("weight_r", num_remainders)):
            weight = torch.empty((count, columns), device=device, dtype=dtype)
            setattr(self, name, nn.Parameter(weight.uniform_(-bound, bound)))

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        bags = bags_of(input, offsets, per_sample_weights, self.include_last_offset)
        indices, offsets, per_sample_weights = bags
        quotients = torch.div(indices, self.num_remainders, rounding_mode="floor")
        remainders = indices % self.num_remainders
        parts = [
            nn.functional.embedding_bag(
                part,
                weight,
                offsets,
                mode=self.mode,
                per_sample_weights=per_sample_weights,
                include_last_offset=True,
            )
            for part, weight in ((quotients, self.weight_q), (remainders, self.weight_r))
        ]
        if self.operation == "mult":
            return parts[0] * parts[1]
        if self.operation == "add":
            return parts[0] + parts[1]
        return torch.cat(parts, dim=1)


class CodesEmbeddingBag(nn.Module):
    """`torch.nn.EmbeddingBag` over rows of codes: numbers of entries, one in each of a few books.

    A row is its entries put end to end ("concat", product quantisation) or their sum ("add"), times
    the projection, if there is one. The codes are fixed; `books` and `projection` are parameters.
    `from_pretrained` finds all of them for a dense table.

    Args:
        codes: rows x books, integers below the number of entries.
        books: books x entries x columns of an entry.
        projection: columns of a row of entries x embedding_dim.
    """

    codes: Tensor

    def __init__(
        self,
        codes: Tensor,
        books: Tensor,
        projection: Tensor | None = None,
        *,
        combine: str = "concat",
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        if combine not in ("concat", "add"):
            raise ValueError(f"combine {combine!r}: expected concat or add")
        if mode not in _MODES:
            raise ValueError(f"mode {mode!r}: expected one of {_MODES}")
        if codes.dim() != 2 or books.dim() != 3 or codes.shape[1] != books.shape[0]:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} and books of shape {tuple(books.shape)}: "
                "expected rows x books, and books x entries x columns of an entry"
            )
        if not ((codes >= 0) & (codes < books.shape[1])).all():
            raise ValueError(f"a code is not below the number of entries, {books.shape[1]}")
        inner = books.shape[2] * (books.shape[0] if combine == "concat" else 1)
        if projection is not None and (projection.dim() != 2 or projection.shape[0] != inner):
            raise ValueError(
                f"projection of shape {tuple(projection.shape)}: expected {inner} x embedding_dim"
            )
        self.num_embeddings, self.combine, self.mode = codes.shape[0], combine, mode
        self.embedding_dim = inner if projection is None else projection.shape[1]
        self.include_last_offset, self.padding_idx = include_last_offset, padding_idx
        self.register_buffer("codes", codes)
        self.books = nn.Parameter(books)
        self.projection = None if projection is None else nn.Parameter(projection)

    @classmethod
    def from_pretrained(cls, dense: Tensor, books: int, **options: Any) -> CodesEmbeddingBag:
        """A dense table as codes, so many of a row.

        `options` are those of the class, and `bits`, `rank`, `rotation` and `combine` of a spec.
        """
        facts = {key: options.pop(key) for key in ("bits", "rank", "rotation") if key in options}
        spec = {"tensor": "table", "representation": "codes", "dtype": "f32", "books": books}
        spec["combine"] = options.get("combine", "concat")
        table = {"table": dense.detach().float()}
        blob = convert(table, {"table": [{**spec, **facts}]}, progress=False)
        found = blob["table"]._codes()
        if found is None:
            raise ValueError(f"{blob['table']}: expected codes")
        codes, entries, projection, _ = found
        matrix = None if projection is None else torch.from_numpy(projection)
        return cls(torch.from_numpy(codes), torch.from_numpy(entries), matrix, **options)

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of `indices`, of one dimension, before the projection."""
        codes = self.codes.index_select(0, indices)
        entries = self.books[torch.arange(self.books.shape[0], device=codes.device), codes]
        return entries.flatten(1) if self.combine == "concat" else entries.sum(1)

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        if per_sample_weights is not None and self.mode != "sum":
            raise ValueError(f"per_sample_weights with mode {self.mode!r}: expected sum")
        bags = bags_of(input, offsets, per_sample_weights, self.include_last_offset)
        rows = self.rows(bags[0])
        if self.projection is None:
            return plain.pool(rows, *bags, self.mode, self.padding_idx)
        if self.mode == "max":
            return plain.pool(rows @ self.projection, *bags, "max", self.padding_idx)
        # A sum is projected once for each bag.
        return plain.pool(rows, *bags, self.mode, self.padding_idx) @ self.projection


def bags_of(
    input: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bags as `torch.nn.EmbeddingBag` takes them, as indices, all offsets and weights."""
    if input.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"indices of {input.dtype}: expected torch.int32 or torch.int64")
    if per_sample_weights is not None and per_sample_weights.shape != input.shape:
        raise ValueError(
            f"per_sample_weights of shape {tuple(per_sample_weights.shape)}: expected that of the "
            f"indices, {tuple(input.shape)}"
        )
    if input.dim() == 2:
        if offsets is not None:
            raise ValueError("indices of two dimensions with offsets: expected one dimension")
        bags, each = input.shape
        offsets = torch.arange(bags + 1, dtype=input.dtype, device=input.device) * each
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        return input.reshape(-1), offsets, weights
    if input.dim() != 1:
        raise ValueError(f"indices of {input.dim()} dimensions: expected 1 or 2")
    if offsets is None or offsets.dim() != 1:
        raise ValueError("indices of one dimension: expected offsets of one dimension")
    offsets = offsets.to(input.dtype)
    if not include_last_offset:
        offsets = torch.cat([offsets, offsets.new_full((1,), input.shape[0])])
    return input, offsets, per_sample_weights


def _tensor_train(blob: Blob) -> tuple[list[int], list[int], list[int], bool, list[Any]]:
    """The only table of a blob: its factors, ranks, order of rows and cores."""
    table = blob[blob.names[0]]
    found = table._tensor_train()
    if found is None:
        raise ValueError(f"{table}: expected a tensor train")
    rows, columns, ranks, least_rows, least_columns, cores = found
    if least_columns:
        # Cores in reverse, each slice transposed, are the same table.
        cores = [core.transpose(0, 3, 2, 1).copy() for core in reversed(cores)]
        rows, columns, ranks = rows[::-1], columns[::-1], ranks[::-1]
        least_rows = not least_rows
    return rows, columns, ranks, least_rows, cores


def load_fbtt(
    source: Source,
    num_embeddings: int,
    column_factors: Sequence[int],
    *,
    prefix: str = "",
    table: int = 0,
    **options: Any,
) -> TTEmbeddingBag:
    """The layer of a `TTEmbeddingBag` of FBTT-Embedding, from its `state_dict` or a checkpoint.

    `options` are those of `ttrec.torch.TTEmbeddingBag`, such as `mode`, which FBTT does not store.
    """
    spec: Mapping[str, Any] = {
        "name": "table",
        "dialect": "fbtt",
        "prefix": prefix,
        "table": table,
        "num_embeddings": num_embeddings,
        "column_factors": list(column_factors),
        "dtype": "f32",
    }
    blob = convert(source, {"table": [spec]}, progress=False)
    rows, columns, ranks, is_least, cores = _tensor_train(blob)
    layer = TTEmbeddingBag(
        num_embeddings,
        math.prod(columns),
        rank=ranks,
        row_factors=rows,
        column_factors=columns,
        order=_ORDERS[is_least],
        **options,
    )
    layer._set_cores(cores)
    return layer

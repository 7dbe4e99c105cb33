"""Custom operators of torch around the kernels for tensor trains: CPU and float32 alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._ttrec import TensorTrain


@functools.lru_cache(maxsize=4096)
def kernels(
    num_embeddings: int,
    row_factors: tuple[int, ...],
    column_factors: tuple[int, ...],
    ranks: tuple[int, ...],
    least_significant_first: bool,
) -> TensorTrain:
    """The kernels for a shape, and the memory that their calls reuse."""
    return TensorTrain(num_embeddings, row_factors, column_factors, ranks, least_significant_first)


def array(tensor: Tensor) -> Any:
    """The numbers of a tensor as an array, which shares them if they are contiguous."""
    return tensor.detach().contiguous().numpy()


def arrays(tensors: Sequence[Tensor]) -> list[Any]:
    return [array(tensor) for tensor in tensors]


def optional_array(tensor: Tensor | None) -> Any:
    return None if tensor is None else array(tensor)


@torch.library.custom_op("ttrec::tt_bag", mutates_args=(), device_types="cpu")
def tt_bag(
    cores: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    num_embeddings: int,
    row_factors: Sequence[int],
    column_factors: Sequence[int],
    ranks: Sequence[int],
    least_significant_first: bool,
    mode: str,
    padding_idx: int | None,
) -> Tensor:
    """The pooled rows of bags; `offsets` ends with the number of indices."""
    shape = (tuple(row_factors), tuple(column_factors), tuple(ranks))
    tt = kernels(num_embeddings, *shape, least_significant_first)
    out = _pooled(cores, offsets, column_factors)
    tt.pool(
        arrays(cores),
        array(indices),
        array(offsets),
        mode,
        optional_array(per_sample_weights),
        padding_idx,
        out.numpy(),
        torch.get_num_threads(),
    )
    return out


def _pooled(cores: Sequence[Tensor], offsets: Tensor, column_factors: Sequence[int]) -> Tensor:
    embedding_dim = 1
    for factor in column_factors:
        embedding_dim *= factor
    return cores[0].new_empty((offsets.shape[0] - 1, embedding_dim))


@tt_bag.register_fake
def _(cores, indices, offsets, per_sample_weights, num_embeddings, row_factors, column_factors, *_):
    return _pooled(cores, offsets, column_factors)


@torch.library.custom_op("ttrec::tt_bag_backward", mutates_args=(), device_types="cpu")
def tt_bag_backward(
    gradient: Tensor,
    cores: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    num_embeddings: int,
    row_factors: Sequence[int],
    column_factors: Sequence[int],
    ranks: Sequence[int],
    least_significant_first: bool,
    mode: str,
    padding_idx: int | None,
    of_weights: bool,
) -> list[Tensor]:
    """The gradients of the cores and, with `of_weights`, those of the weights as the last."""
    shape = (tuple(row_factors), tuple(column_factors), tuple(ranks))
    tt = kernels(num_embeddings, *shape, least_significant_first)
    gradients = _gradients(cores, per_sample_weights, of_weights)
    tt.backward(
        arrays(cores),
        array(indices),
        array(offsets),
        mode,
        optional_array(per_sample_weights),
        padding_idx,
        array(gradient),
        [out.numpy() for out in gradients[: len(cores)]],
        gradients[-1].numpy() if of_weights else None,
        torch.get_num_threads(),
    )
    return gradients


def _gradients(
    cores: Sequence[Tensor], per_sample_weights: Tensor | None, of_weights: bool
) -> list[Tensor]:
    like = [*cores, per_sample_weights] if of_weights and per_sample_weights is not None else cores
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in like]


@tt_bag_backward.register_fake
def _(
    gradient,
    cores,
    indices,
    offsets,
    per_sample_weights,
    num_embeddings,
    row_factors,
    column_factors,
    ranks,
    least_significant_first,
    mode,
    padding_idx,
    of_weights,
):
    return _gradients(cores, per_sample_weights, of_weights)


def _save(ctx, inputs, output):
    cores, indices, offsets, per_sample_weights, *facts = inputs
    ctx.num_cores, ctx.facts = len(cores), facts
    ctx.save_for_backward(indices, offsets, per_sample_weights, *cores)


def _backward(ctx, gradient):
    indices, offsets, per_sample_weights, *cores = ctx.saved_tensors
    of_weights = per_sample_weights is not None and ctx.needs_input_grad[3]
    gradients = tt_bag_backward(
        gradient, cores, indices, offsets, per_sample_weights, *ctx.facts, of_weights
    )
    of_cores = gradients[: ctx.num_cores]
    facts = [None] * len(ctx.facts)
    return of_cores, None, None, gradients[-1] if of_weights else None, *facts


tt_bag.register_autograd(_backward, setup_context=_save)

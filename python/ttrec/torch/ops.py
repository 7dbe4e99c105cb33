"""The kernels for tensor trains, as functions and as operators of torch: float32 on the CPU only."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._ttrec import TensorTrain

#: num_embeddings, row factors, column factors, ranks, whether the least significant digit is first.
Shape = tuple[int, Sequence[int], Sequence[int], Sequence[int], bool]
#: Indices, offsets with the last one, per_sample_weights, mode and padding_idx.
Bags = tuple[Tensor, Tensor, Tensor | None, str, int | None]


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


def suit(cores: Sequence[Tensor], per_sample_weights: Tensor | None) -> bool:
    """Whether the kernels take these tensors."""
    tensors = cores if per_sample_weights is None else [*cores, per_sample_weights]
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def _arrays(tensors: Sequence[Tensor]) -> list[Any]:
    """Tensors as arrays that share their memory."""
    return [tensor.detach().numpy() for tensor in tensors]


def _arrays_of_bags(bags: Bags) -> tuple[Any, ...]:
    indices, offsets, weights, *rest = bags
    of_weights = None if weights is None else weights.detach().numpy()
    return indices.numpy(), offsets.numpy(), of_weights, *rest


def pool(shape: Shape, cores: Sequence[Tensor], bags: Bags) -> Tensor:
    """The pooled rows of bags."""
    out = _like_pooled(cores, *bags, *shape)
    arrays, of_bags = _arrays(cores), _arrays_of_bags(bags)
    _kernels(shape).pool(arrays, of_bags, out.numpy(), torch.get_num_threads())
    return out


def step(
    shape: Shape,
    cores: Sequence[Tensor],
    state: Sequence[Tensor],
    bags: Bags,
    gradient: Tensor,
    optimizer: str,
    lr: float,
    eps: float,
) -> None:
    """Moves cores and the state of their optimiser by the gradient of the pooled rows."""
    arrays, of_state, of_bags = _arrays(cores), _arrays(state), _arrays_of_bags(bags)
    rule = (optimizer, lr, eps, torch.get_num_threads())
    _kernels(shape).step(arrays, of_state, of_bags, gradient.numpy(), *rule)


def _kernels(shape: Shape) -> TensorTrain:
    num_embeddings, *factors, least_significant_first = shape
    return kernels(num_embeddings, *map(tuple, factors), least_significant_first)


_ARGUMENTS = (
    "Tensor[] cores, Tensor indices, Tensor offsets, Tensor? per_sample_weights, str mode, "
    "SymInt? padding_idx, SymInt num_embeddings, SymInt[] row_factors, SymInt[] column_factors, "
    "SymInt[] ranks, bool least_significant_first"
)
torch.library.define("ttrec::tt_bag", f"({_ARGUMENTS}) -> Tensor")
# The gradients of the cores and, with `of_weights`, those of the weights as the last.
torch.library.define(
    "ttrec::tt_bag_backward", f"(Tensor gradient, bool of_weights, {_ARGUMENTS}) -> Tensor[]"
)


@torch.library.register_fake("ttrec::tt_bag")
def _like_pooled(cores, indices, offsets, weights, mode, padding_idx, *shape):
    return cores[0].new_empty((offsets.shape[0] - 1, math.prod(shape[2])))


@torch.library.register_fake("ttrec::tt_bag_backward")
def _like_gradients(gradient, of_weights, cores, indices, offsets, weights, *_):
    like = [*cores, weights] if of_weights else cores
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in like]


@torch.library.impl("ttrec::tt_bag", "CPU")
def _pool(cores, *bags_and_shape):
    return pool(bags_and_shape[5:], cores, bags_and_shape[:5])


@torch.library.impl("ttrec::tt_bag_backward", "CPU")
def _gradients(gradient, of_weights, cores, *bags_and_shape):
    gradients = _like_gradients(gradient, of_weights, cores, *bags_and_shape)
    outs = _arrays(gradients)
    of_weights = outs.pop() if of_weights else None
    arrays, of_bags = _arrays(cores), _arrays_of_bags(bags_and_shape[:5])
    threads = torch.get_num_threads()
    tt = _kernels(bags_and_shape[5:])
    tt.backward(arrays, of_bags, gradient.detach().numpy(), outs, of_weights, threads)
    return gradients


class _Bag(torch.autograd.Function):
    @staticmethod
    def forward(ctx, indices, offsets, weights, facts, *cores):
        ctx.facts = facts
        ctx.save_for_backward(indices, offsets, weights, *cores)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.ttrec.tt_bag(cores, indices, offsets, weights, *facts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        indices, offsets, weights, *cores = ctx.saved_tensors
        of_weights = weights is not None and ctx.needs_input_grad[2]
        of_cores = torch.ops.ttrec.tt_bag_backward(
            gradient, of_weights, cores, indices, offsets, weights, *ctx.facts
        )
        return None, None, of_cores.pop() if of_weights else None, None, *of_cores


# `torch.library.register_autograd` takes 120 us more a call for an operator with a list of tensors.
@torch.library.impl("ttrec::tt_bag", "Autograd")
def _bag(cores, indices, offsets, weights, *facts):
    return _Bag.apply(indices, offsets, weights, facts, *cores)

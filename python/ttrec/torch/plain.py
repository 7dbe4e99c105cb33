"""Tensor trains in plain operations of torch: any device and type, any number of derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def strides(row_factors: Sequence[int], least_significant_first: bool) -> list[int]:
    """How many rows one step of each digit of a row moves."""
    order = range(len(row_factors)) if least_significant_first else None
    order = order or range(len(row_factors) - 1, -1, -1)
    found, stride = [0] * len(row_factors), 1
    for k in order:
        found[k] = stride
        stride *= row_factors[k]
    return found


def rows(
    cores: Sequence[Tensor],
    indices: Tensor,
    row_factors: Sequence[int],
    column_factors: Sequence[int],
    ranks: Sequence[int],
    least_significant_first: bool,
) -> Tensor:
    """The rows of `indices`, of one dimension: products of one slice of each core."""
    bounds = [1, *ranks, 1]
    count = indices.shape[0]
    product = cores[0]
    steps = strides(row_factors, least_significant_first)
    for k, (core, factor, step) in enumerate(zip(cores, row_factors, steps, strict=True)):
        digit = torch.div(indices, step, rounding_mode="floor") % factor
        columns = column_factors[k] * bounds[k + 1]
        slices = core.reshape(factor, bounds[k], columns).index_select(0, digit)
        # The first slice has one row, and is the product so far.
        product = torch.bmm(product.reshape(count, -1, bounds[k]), slices) if k else slices
    return product.reshape(count, -1)


def pool(
    looked_up: Tensor,
    indices: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    mode: str,
    padding_idx: int | None,
) -> Tensor:
    """Pools rows as `torch.nn.EmbeddingBag` does; `offsets` ends with the number of rows."""
    num_bags = offsets.shape[0] - 1
    if num_bags == 0 or looked_up.shape[0] == 0:
        return looked_up.new_zeros((num_bags, looked_up.shape[1])) + looked_up.sum() * 0
    lengths = offsets.diff()
    bags = torch.arange(num_bags, device=offsets.device)
    bag_of = bags.repeat_interleave(lengths, output_size=looked_up.shape[0])
    kept = None if padding_idx is None else indices != padding_idx
    shape = (num_bags, looked_up.shape[1])
    if mode == "max":
        if kept is not None:
            looked_up = looked_up.masked_fill(~kept[:, None], float("-inf"))
        lowest = looked_up.new_full(shape, float("-inf"))
        best = lowest.scatter_reduce(0, bag_of[:, None].expand_as(looked_up), looked_up, "amax")
        return best.masked_fill(best == float("-inf"), 0.0)
    if per_sample_weights is not None:
        looked_up = looked_up * per_sample_weights[:, None]
    if kept is not None:
        looked_up = looked_up * kept[:, None]
        ones = kept.to(looked_up.dtype)
        lengths = ones.new_zeros(num_bags).index_add(0, bag_of, ones)
    sums = looked_up.new_zeros(shape).index_add(0, bag_of, looked_up)
    if mode == "mean":
        sums = sums / lengths.clamp(min=1)[:, None]
    return sums

"""Layers for PyTorch whose tables are tensor trains, or compressed otherwise.

`TTEmbeddingBag` and `TTEmbedding` take the place of `torch.nn.EmbeddingBag` and
`torch.nn.Embedding`. On the CPU they run this package's kernels; on other devices, and for other
types than float32, operations of torch, which give the same numbers.
"""

from .layers import (
    CodesEmbeddingBag,
    HashedEmbeddingBag,
    QuotientRemainderEmbeddingBag,
    TTEmbedding,
    TTEmbeddingBag,
    load_fbtt,
)
from .models import compress, save_blob, spec_of

__all__ = [
    "CodesEmbeddingBag",
    "HashedEmbeddingBag",
    "QuotientRemainderEmbeddingBag",
    "TTEmbedding",
    "TTEmbeddingBag",
    "compress",
    "load_fbtt",
    "save_blob",
    "spec_of",
]

"""Compressed embedding tables: open blobs, convert checkpoints, train with PyTorch.

`open` maps a blob, `convert`, `plan` and `compare` make and check blobs, and the module
`ttrec.torch` has layers for PyTorch. Only that module imports torch.
"""

from __future__ import annotations

import collections.abc as _abc
import os as _os

from ._ttrec import Blob, BlobError, ConvertError, Ranker, Table, __version__
from .conversion import Plan, compare, convert, plan, report

_abc.Mapping.register(Blob)


def open(path: str | _os.PathLike[str]) -> Blob:
    """Map the blob at `path`, after a check of its directory. `Blob.verify` checks all of it."""
    return Blob.open(path)


__all__ = [
    "Blob",
    "BlobError",
    "ConvertError",
    "Plan",
    "Ranker",
    "Table",
    "__version__",
    "compare",
    "convert",
    "open",
    "plan",
    "report",
]

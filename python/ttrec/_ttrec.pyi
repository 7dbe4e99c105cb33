"""The extension module of the package."""

import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Path: TypeAlias = str | os.PathLike[str]
_Floats: TypeAlias = NDArray[np.float32]
#: (indices, offsets), (indices, offsets, per_sample_weights), or indices alone.
_Bags: TypeAlias = ArrayLike | tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]
#: Indices, offsets with the last one, per_sample_weights, mode and padding_idx.
_BagsAndMode: TypeAlias = tuple[ArrayLike, ArrayLike, ArrayLike | None, str, int | None]

_Default = TypeVar("_Default")

__all__ = [
    "Blob",
    "BlobError",
    "ConvertError",
    "Ranker",
    "Table",
    "TensorTrain",
    "__version__",
    "compare",
    "convert",
    "plan",
    "run",
    "suggest_factors",
]
__version__: str

class BlobError(ValueError):
    """The bytes are not a blob, or are damaged."""

class ConvertError(ValueError):
    """A checkpoint or a spec was refused, or they do not fit each other."""

@final
class Blob:
    """A blob: tables by name, and perhaps the model around them.

    `ttrec.open` maps a file. A table keeps the file mapped while it is in use, also after `close`.
    """

    @classmethod
    def open(cls, path: _Path) -> Blob:
        """Maps the blob at `path` and checks its directory."""

    @classmethod
    def from_bytes(cls, bytes: bytes) -> Blob:
        """A blob in memory, from a copy of its bytes."""

    def to_bytes(self) -> bytes:
        """A copy of the bytes of the blob."""

    @property
    def path(self) -> os.PathLike[str] | None:
        """The path of its file; None in memory."""

    @property
    def names(self) -> list[str]:
        """The names of the tables, in order."""

    @property
    def nbytes(self) -> int:
        """The length of the blob in bytes."""

    @property
    def has_model(self) -> bool:
        """Whether the blob has a model, which `ranker` runs."""

    def ranker(self) -> Ranker:
        """The model: computes scores."""

    def verify(self) -> None:
        """Reads the whole blob, and raises BlobError if a checksum does not match."""

    def close(self) -> None:
        """Ends the use of the blob: its methods raise ValueError from now on."""

    def keys(self) -> list[str]:
        """As `names`."""

    def values(self) -> list[Table]: ...
    def items(self) -> list[tuple[str, Table]]: ...
    @overload
    def get(self, name: str, default: None = None) -> Table | None: ...
    @overload
    def get(self, name: str, default: _Default) -> Table | _Default: ...
    def __getitem__(self, name: str, /) -> Table: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def __enter__(self) -> Blob: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
        /,
    ) -> None: ...

@final
class Table:
    """A table of a blob: rows by their indices.

    Indices are arrays, lists or torch tensors of any integer type. They are not copied if they are
    contiguous and of 32 or 64 bits. While a call runs, other Python threads run too; do not change
    its arrays meanwhile.
    """

    @property
    def name(self) -> str:
        """Its name in the blob."""

    @property
    def num_embeddings(self) -> int:
        """The number of indices."""

    @property
    def embedding_dim(self) -> int:
        """The number of elements of a row."""

    @property
    def shape(self) -> tuple[int, int]:
        """(num_embeddings, embedding_dim)."""

    @property
    def representation(self) -> str:
        """How it is stored, such as "tt", "dense" or "low-rank"."""

    @property
    def dtype(self) -> str:
        """The stored type of its numbers, such as "f16"."""

    @property
    def nbytes(self) -> int:
        """The bytes of its sections."""

    @property
    def row_factors(self) -> list[int] | None:
        """The row factors of a tensor train; None of other tables."""

    @property
    def column_factors(self) -> list[int] | None:
        """The column factors of a tensor train; None of other tables."""

    @property
    def ranks(self) -> list[int] | None:
        """The inner ranks of a tensor train; None of other tables."""

    def lookup(
        self, indices: ArrayLike, *, out: _Floats | None = None, threads: int = 1
    ) -> _Floats:
        """The rows of `indices`, an array of any shape: one more dimension, of `embedding_dim`."""

    def pool(
        self,
        indices: ArrayLike,
        offsets: ArrayLike | None = None,
        *,
        mode: str,
        per_sample_weights: ArrayLike | None = None,
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        out: _Floats | None = None,
        threads: int = 1,
    ) -> _Floats:
        """Pools each bag into one row, as torch.nn.EmbeddingBag does with the same arguments.

        mode: "sum", "mean" or "max". Without offsets, each row of two-dimensional indices is a bag.
        """

    def scores(
        self,
        queries: ArrayLike,
        *,
        rows: tuple[int, int] | None = None,
        out: _Floats | None = None,
        threads: int = 1,
    ) -> _Floats:
        """The inner product of each query with each row, or with the rows from `rows[0]` to before
        `rows[1]`: an array of queries x rows; of rows alone for a query of one dimension.
        """

    def top_k(
        self,
        queries: ArrayLike,
        k: int,
        *,
        exclude: ArrayLike | Sequence[ArrayLike] | None = None,
        bias: Table | None = None,
        rows: tuple[int, int] | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.int64], _Floats]:
        """The `k` rows with the highest inner products with each query, best first: their indices
        (int64) and scores (float32), queries x k; of k elements for a query of one dimension.

        exclude: indices to leave out, one list for all queries, or a list of lists, one for each.
        bias: a dense table of one column, which is added to the scores. If fewer than k rows are
        left, the rest has index -1 and score -inf.
        """

    def _tensor_train(
        self,
    ) -> tuple[list[int], list[int], list[int], bool, bool, list[_Floats]] | None: ...
    def _codes(self) -> tuple[NDArray[np.int64], _Floats, _Floats | None, bool] | None: ...
    def __len__(self) -> int: ...

@final
class Ranker:
    """The model of a blob: from dense features and bags to scores.

    The bags of a table are `(indices, offsets)` or `(indices, offsets, per_sample_weights)`, as
    torch.nn.EmbeddingBag takes them; or indices alone, one for each sample, or a row of them for
    each. `bags` has them for each table: a list in the order of `tables`, or a dict by name. If
    features share a table, it is several times in `tables`, and `bags` is a list.
    """

    @property
    def tables(self) -> list[str]:
        """The names of the tables, in the order in which `bags` has them."""

    @property
    def num_dense(self) -> int:
        """The number of dense features of a sample."""

    @property
    def poolings(self) -> list[str]:
        """How each table pools a bag: "sum" or "mean"."""

    def score(
        self,
        dense: ArrayLike | None = None,
        bags: Sequence[_Bags] | Mapping[str, _Bags] | None = None,
        *,
        logits: bool = False,
        include_last_offset: bool = False,
        padding_idx: dict[str, int] | None = None,
        out: _Floats | None = None,
    ) -> _Floats:
        """The score of each sample: a probability if the model ends in a sigmoid; with `logits`,
        what the sigmoid takes. `padding_idx` is a dict of the index to leave out, by table.
        """

    def rank(
        self,
        dense: ArrayLike | None = None,
        bags: Sequence[_Bags] | Mapping[str, _Bags] | None = None,
        *,
        include_last_offset: bool = False,
        padding_idx: dict[str, int] | None = None,
        out: _Floats | None = None,
    ) -> _Floats:
        """The score of each candidate for one user, as `score` would for samples that repeat the
        user's part, but faster: dense features and bags that are given once are those of all.
        """

@final
class TensorTrain:
    """The shape of a tensor train, and what its calls reuse. Each call takes the cores."""

    def __new__(
        cls,
        num_embeddings: int,
        row_factors: Sequence[int],
        column_factors: Sequence[int],
        ranks: Sequence[int],
        least_significant_first: bool,
    ) -> TensorTrain: ...
    def pool(
        self, cores: Sequence[_Floats], bags: _BagsAndMode, out: _Floats, threads: int
    ) -> None:
        """Pools bags of the table of these cores into `out`."""

    def backward(
        self,
        cores: Sequence[_Floats],
        bags: _BagsAndMode,
        gradient: _Floats,
        core_gradients: Sequence[_Floats],
        weight_gradients: _Floats | None,
        threads: int,
    ) -> None:
        """Writes the gradients of the cores, and of the weights, into arrays."""

    def step(
        self,
        cores: Sequence[_Floats],
        state: Sequence[_Floats],
        bags: _BagsAndMode,
        gradient: _Floats,
        optimizer: str,
        learning_rate: float,
        epsilon: float,
        threads: int,
    ) -> None:
        """Takes a step of an optimiser: moves the cores and its state."""

def suggest_factors(
    num_embeddings: int, embedding_dim: int, cores: int
) -> tuple[list[int], list[int]]:
    """Row and column factors for a table of this size, in so many cores."""

def convert(
    source: _Path,
    spec_text: str | None,
    out: _Path | None,
    frequencies: _Path | None,
    memory_text: str,
    progress: Any,
) -> Blob:
    """Converts the checkpoint at `source` to a blob at `out`, or in memory."""

def plan(
    source: _Path,
    spec_text: str | None,
    budget: str | None,
    max_error: float | None,
    max_nanoseconds: float | None,
    frequencies: _Path | None,
    memory_text: str,
    progress: Any,
) -> tuple[dict[str, Any], str, str | None]:
    """Chooses how to store each table: the plan as a dict, its spec and a warning."""

def compare(
    blob: Blob, source: _Path, spec_text: str | None, progress: Any
) -> dict[str, list[dict[str, Any]]]:
    """Compares each row of a blob with the checkpoint at `source`."""

def run(args: Sequence[str]) -> int:
    """Runs the command `ttrec` with these words, its name first, and returns its exit code."""

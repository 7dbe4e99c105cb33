"""Malformed calls raise: none crashes, hangs or returns."""

from __future__ import annotations

import gc
import itertools
import threading

import numpy as np
import pytest
from conftest import SHAPE

import ttrec
from ttrec import _ttrec

ERRORS = (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, BufferError)


class Liar:
    """Says that it is an array, and is none."""

    def __init__(self, result):
        self.result = result

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


#: Neither indices nor offsets, nor weights, queries or features.
NOT_NUMBERS = [
    None,
    "3",
    b"3",
    {},
    {3},
    object(),
    [None],
    ["x"],
    [[1], [2, 3]],
    [1 + 2j],
    [True, False],
    np.array([1, 2], object),
    np.array(["1"]),
    np.array([1], "M8[s]"),
    np.zeros(2, [("a", "i4")]),
    Liar("no"),
    Liar(ZeroDivisionError()),
    lambda: 3,
]
NOT_INDICES = [
    *NOT_NUMBERS,
    -1,
    [0, -5],
    500,
    [3, 2**31],
    [2**40],
    [2**63 - 1],
    np.array([2**64 - 1], "u8"),
    np.array([2**32 - 1], "u4"),
    [2**64],
    [10**30],
    1.0,
    [1.5],
    [np.nan],
    np.array([1, 2], "f4"),
]
NOT_OFFSETS = [
    *NOT_NUMBERS[1:],
    3,
    [1],
    [0, 5],
    [0, 3, 2],
    [0, -1],
    [-1, 0],
    [[0, 1]],
    [0.5],
    np.array([0, 2**63], "u8"),
    [0, 2**40],
    [10**30],
]


def raises(call, *args, **options):
    try:
        found = call(*args, **options)
    except (*ERRORS, ZeroDivisionError):
        return
    pytest.fail(f"{args} {options} gave {found!r}")


@pytest.mark.parametrize("name", ("dense", "hashed", "tt"))
@pytest.mark.parametrize("threads", (1, 2))
def test_pool(blob, name, threads):
    table = blob[name]
    for indices in NOT_INDICES:
        raises(table.lookup, indices, threads=threads)
        raises(table.pool, indices, [0], mode="sum", threads=threads)
        if not isinstance(indices, (dict, set)):
            raises(table.pool, [indices, indices], mode="sum", threads=threads)
    for offsets, dtype in itertools.product(NOT_OFFSETS, ("i4", "u4", "i8", "u8")):
        indices = np.arange(4).astype(dtype)
        raises(table.pool, indices, offsets, mode="sum", threads=threads)
    for weights in [*NOT_NUMBERS[1:], 1.0, [1.0], [1.0] * 5, [[1.0] * 4]]:
        raises(table.pool, range(4), [0], mode="sum", per_sample_weights=weights)
    for mode in (None, "", "SUM", "avg", 0, b"sum", "sum\0"):
        raises(table.pool, range(4), [0], mode=mode, threads=threads)
    for mode in ("mean", "max"):
        raises(table.pool, range(4), [0], mode=mode, per_sample_weights=[1.0] * 4)
    for padding in (500, -501, 2**63, -(2**63), 2**70, "0", 0.5, [0]):
        raises(table.pool, range(4), [0], mode="sum", padding_idx=padding)
    for indices in (3, [[[1]]], np.zeros((2, 2, 2), int)):
        raises(table.pool, indices, mode="sum")
        raises(table.pool, indices, [0], mode="sum")
    raises(table.pool, [1, 2], mode="sum")
    raises(table.pool, [[1, 2]], [0], mode="sum")
    raises(table.pool, [1, 2], [], mode="sum", include_last_offset=True)
    raises(table.pool, [1, 2], [0, 1], mode="sum", include_last_offset=True)
    raises(table.pool)
    raises(table.pool, [1], [0])
    raises(table.lookup)
    raises(table.lookup, [1], no=3)


@pytest.mark.parametrize("threads", (0, -1, 257, 10**9, 2**70, 1.5, "2", None))
def test_threads(blob, threads):
    table, query = blob["tt"], np.zeros(SHAPE[1], "f4")
    raises(table.lookup, [1, 2], threads=threads)
    raises(table.pool, [[1], [2]], mode="sum", threads=threads)
    raises(table.scores, query, threads=threads)
    raises(table.top_k, query, 3, threads=threads)


def test_out(blob):
    table, queries = blob["tt"], np.zeros((2, SHAPE[1]), "f4")
    right = np.zeros((2, SHAPE[1]), "f4")
    frozen = right.copy()
    frozen.flags.writeable = False
    unaligned = np.zeros(right.nbytes + 1, "u1")[1:].view("f4").reshape(right.shape)
    wrong = [
        [[0.0] * SHAPE[1]] * 2,
        right.astype("f8"),
        right.astype(">f4"),
        right.T,
        right[:1],
        right.reshape(-1),
        np.asfortranarray(right),
        np.zeros((2, 2 * SHAPE[1]), "f4")[:, ::2],
        np.zeros((4, SHAPE[1]), "f4")[::-2],
        np.broadcast_to(right[0], right.shape),
        frozen,
        unaligned,
        "out",
        3,
        bytearray(right.nbytes),
    ]
    for out in wrong:
        raises(table.lookup, [1, 2], out=out)
        raises(table.pool, [[1], [2]], mode="sum", out=out)
        raises(table.scores, queries, out=out)
    # Two arguments in the same memory.
    weights = right.reshape(-1)[: 2 * SHAPE[1]].reshape(2, SHAPE[1])
    indices = np.zeros((2, SHAPE[1]), int)
    raises(table.pool, indices, mode="sum", per_sample_weights=weights, out=right)
    raises(table.scores, right, rows=(0, SHAPE[1]), out=right)
    raises(table.lookup, right.view("i4").reshape(-1)[:2], out=right)


def test_retrieval(blob):
    for name in ("dense", "hashed", "tt"):
        table, query = blob[name], np.zeros(SHAPE[1], "f4")
        wrong = [3.0, [1.0], [[1.0]], np.zeros((2, 2, SHAPE[1])), np.zeros(SHAPE[1] + 1), []]
        for queries in [*NOT_NUMBERS, *wrong]:
            raises(table.scores, queries)
            raises(table.top_k, queries, 3)
        for k in (-1, 501, 10**12, 2**64, 2**70, None, "3", 1.5, [3]):
            raises(table.top_k, query, k)
        for rows in ((3, 2), (0, 501), (501, 502), (-1, 3), (0,), 3, "ab", (2**70, 2**71)):
            raises(table.scores, query, rows=rows)
            raises(table.top_k, query, 3, rows=rows)
        for exclude in [3, "x", [-1], [500], [1.5], [[-1]], [[1], [2]], [[[1]]], [2**70], [[None]]]:
            raises(table.top_k, query, 3, exclude=exclude)
        for bias in (3, query, blob, blob["dense"], "bias"):
            raises(table.top_k, query, 3, bias=bias)
        # What is not finite is no error.
        bad = np.full(SHAPE[1], np.nan, "f4")
        assert np.isnan(table.scores(bad)).all()
        assert (table.top_k(bad, 3)[0] == -1).all()


def test_ranker(blobs):
    ranker = ttrec.open(blobs / "dlrm.ttr").ranker()
    count = len(ranker.tables)
    dense, one = np.zeros((2, ranker.num_dense)), np.array([0, 1])
    lists = [one] * count
    ranker.score(dense, lists)
    for call in (ranker.score, ranker.rank):
        for wrong in [*NOT_NUMBERS, dense[:, 1:], dense.reshape(-1), np.zeros((2, 2, 13)), 1.0]:
            raises(call, wrong, lists)
        for bags in (None, 3, [], lists[1:], [*lists, one], {}, dict.fromkeys("abcd", one), "abcd"):
            raises(call, dense, bags)
        for indices in [*NOT_INDICES, (one,), (one, one, one, one), ("x", "y"), (one, [0, 9])]:
            if not (isinstance(indices, int) and indices == 500):
                raises(call, dense, [indices, *lists[1:]])
        for padding in ({"no": 0}, {0: 0}, {ranker.tables[0]: 10**9}, {ranker.tables[0]: "x"}, 3):
            raises(call, dense, lists, padding_idx=padding)
        for out in (np.zeros(3, "f4"), np.zeros(2), np.zeros((2, 1), "f4"), [0.0, 0.0]):
            raises(call, dense, lists, out=out)
    raises(ranker.score, dense[:1], lists)
    raises(ranker.score, np.zeros((3, ranker.num_dense)), lists)
    raises(ranker.rank, np.zeros((3, ranker.num_dense)), lists)


def test_kernels():
    """The kernels of the layers, called with what no layer passes."""
    for shape in (
        (0, [2], [2], [], False),
        (4, [2, 2], [2, 2], [], False),
        (4, [2, 2], [2, 2], [0], False),
        (5, [2, 2], [2, 2], [1], False),
        (4, [0, 4], [2, 2], [1], False),
        (4, [2, 2], [2], [1], False),
        (2**40, [2**20, 2**20], [2, 2], [2], False),
        (4, [2] * 9, [2] * 9, [1] * 8, False),
        (4, [2, 2], [2**31, 2**31], [2**31], False),
        (-1, [2, 2], [2, 2], [1], False),
    ):
        raises(_ttrec.TensorTrain, *shape)
    tt = _ttrec.TensorTrain(4, [2, 2], [2, 2], [3], False)
    cores = [np.ones(12, "f4"), np.ones(12, "f4")]
    bags, out = ([0, 3], [0, 1, 2], None, "sum", None), np.zeros((2, 4), "f4")
    tt.pool(cores, bags, out, 1)
    tt.backward(cores, bags, out, [np.ones(12, "f4") for _ in range(2)], None, 1)
    grads = [np.zeros(12, "f4"), np.zeros(12, "f4")]
    for wrong in ([], cores[:1], cores * 2, [cores[0], cores[1][1:]], [cores[0], "x"], None, 3):
        raises(tt.pool, wrong, bags, out, 1)
        raises(tt.backward, wrong, bags, out, grads, None, 1)
        raises(tt.backward, cores, bags, out, wrong if wrong != [] else [grads[0]], None, 1)
        raises(tt.step, wrong, [], bags, out, "sgd", 0.1, 0.0, 1)
        raises(tt.step, cores, wrong, bags, out, "adagrad", 0.1, 0.0, 1)
    for gradient in (out[:1], out[:, :3], out.reshape(-1)[1:], "x", None):
        raises(tt.backward, cores, bags, gradient, grads, None, 1)
    raises(tt.backward, cores, bags, out, grads, np.zeros(3, "f4"), 1)
    raises(tt.backward, cores, bags, out, [grads[0], grads[0]], None, 1)
    outside, longest = ([0, 4], *bags[1:]), ([0, 3], [0, 1, 2], None, "max", None)
    for wrong in (outside, longest, bags[:4], (*bags, 0), (*bags[:3], 3, None), None, []):
        raises(tt.backward, cores, wrong, out, grads, None, 1)
        raises(tt.step, cores, [], wrong, out, "sgd", 0.1, 0.0, 1)
    for threads in (0, -1, 10**6, "x", None):
        raises(tt.pool, cores, bags, out, threads)
        raises(tt.backward, cores, bags, out, grads, None, threads)
        raises(tt.step, cores, [], bags, out, "sgd", 0.1, 0.0, threads)
    raises(tt.step, cores, [], bags, out, "no", 0.1, 0.0, 1)
    raises(tt.step, [cores[0], cores[0]], [], bags, out, "sgd", 0.1, 0.0, 1)
    raises(_ttrec.suggest_factors, 0, 4, 3)
    raises(_ttrec.suggest_factors, 10, 4, 1)


def test_blobs(blob):
    whole = blob.to_bytes()
    for bytes_ in (b"", b"x", whole[:-1], whole[: len(whole) // 2], bytearray(whole), "x", None):
        raises(ttrec.Blob.from_bytes, bytes_)
    for position in range(0, 2000, 7):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        raises(lambda blob: ttrec.Blob.from_bytes(blob).verify(), bytes(changed))
    for kind in (ttrec.Blob, ttrec.Table, ttrec.Ranker):
        raises(kind)
    closed = ttrec.Blob.from_bytes(whole)
    closed.close()
    closed.close()
    attributes = ("names", "nbytes", "has_model")
    for name in attributes:
        with pytest.raises(ValueError, match="closed"):
            getattr(closed, name)
    for call in (
        closed.keys,
        closed.verify,
        closed.ranker,
        closed.to_bytes,
        closed.__enter__().items,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_conversions(tmp_path):
    rows = {"rows": np.zeros((9, 4), "f4")}
    for source in (None, 3, [], {}, {"x": 3}, tmp_path, tmp_path / "no", "\0", {"a": "b"}):
        raises(ttrec.convert, source, progress=False)
        raises(ttrec.plan, source, budget="50%", progress=False)
    for spec in (
        "[[table]",
        "[[table]]\nx = 3\n",
        {"no": []},
        {"table": [{"x y": 3}]},
        3,
        {"table": [{"tensor": "no"}]},
        {"table": [{"tensor": "rows", "rank": np.nan}]},
    ):
        raises(ttrec.convert, rows, spec, progress=False)
    for memory in ("", "x", -1, None, "10%"):
        raises(ttrec.convert, rows, memory=memory, progress=False)
    for budget in ("", "x", -1, 0, "0%", "1e9", [1]):
        raises(ttrec.plan, rows, budget=budget, progress=False)
    for error in (-1.0, 2.0, np.nan, "x"):
        raises(ttrec.plan, rows, max_error=error, progress=False)
    raises(ttrec.plan, rows)
    with pytest.raises(OSError, match="cannot write"):
        ttrec.convert(rows, out=tmp_path / "no" / "x.ttr", progress=False)


def test_freed_while_used(blob):
    """Objects that other threads drop while calls run."""
    indices, stop = np.arange(400).reshape(20, 20), threading.Event()

    def drop():
        while not stop.is_set():
            copy = ttrec.Blob.from_bytes(blob.to_bytes())
            table = copy["tt"]
            copy.close()
            del copy
            table.pool(indices, mode="sum", threads=2)
            gc.collect()

    threads = [threading.Thread(target=drop) for _ in range(3)]
    for thread in threads:
        thread.start()
    stop.wait(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert blob["tt"].lookup(3).shape == (SHAPE[1],)

"""Tables of blobs, against numpy in double precision."""

from __future__ import annotations

import os
import pickle
import threading
import traceback

import numpy as np
import pytest
from conftest import SHAPE, random

import ttrec

NAMES = ("dense", "hashed", "tt")
INTEGERS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8", "<i8")


def close(found, expected, bound=1e-5):
    assert found.dtype == np.float32
    scale = max(np.abs(expected).max(initial=0), 1e-30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * scale)


@pytest.mark.parametrize("name", NAMES)
def test_rows(blob, tables, name):
    table, rows = blob[name], tables[name]
    assert table.shape == SHAPE and len(table) == SHAPE[0] and table.name == name
    every = table.lookup(np.arange(SHAPE[0]))
    close(every, rows)
    assert np.array_equal(table.lookup(7), every[7])
    assert np.array_equal(table.lookup([[1, 2], [3, 499]]), every[[[1, 2], [3, 499]]])
    assert table.lookup([]).shape == (0, SHAPE[1])
    assert table.lookup(np.zeros((0, 3), int)).shape == (0, 3, SHAPE[1])
    for threads in (2, 3, 9):
        assert np.array_equal(table.lookup(np.arange(SHAPE[0]), threads=threads), every)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers(blob, tables, name, dtype):
    indices, rows = np.array([3, 100, 7, 7, 0], dtype), tables[name]
    offsets = np.array([0, 0, 2, 5], dtype)
    expected = [0 * rows[0], rows[3] + rows[100], 2 * rows[7] + rows[0], 0 * rows[0]]
    close(blob[name].pool(indices, offsets, mode="sum"), np.array(expected))
    # Of another type than the indices, with gaps between the elements, and read-only.
    spread = np.repeat(indices, 3)[::3]
    spread.flags.writeable = False
    assert not spread.flags.contiguous
    close(blob[name].pool(spread, offsets.astype("i4"), mode="sum"), np.array(expected))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", (1, 2, 5))
@pytest.mark.parametrize("mode", ("sum", "mean", "max"))
def test_modes(blob, tables, name, mode, threads):
    table, rows, draws = blob[name], tables[name], random(5)
    indices = draws.integers(0, SHAPE[0], (40, 9))
    expected = getattr(rows[indices], mode)(1)
    close(table.pool(indices, mode=mode, threads=threads), expected)
    offsets = np.arange(0, 360, 9)
    flat = table.pool(indices.reshape(-1), offsets, mode=mode, threads=threads)
    close(flat, expected)
    last = table.pool(
        indices.reshape(-1),
        np.append(offsets, 360),
        mode=mode,
        include_last_offset=True,
        threads=threads,
    )
    assert np.array_equal(flat, last)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", (1, 3))
def test_weights_and_padding(blob, tables, name, threads):
    table, rows, draws = blob[name], tables[name], random(6)
    indices = draws.integers(0, 20, (30, 8))
    weights = draws.normal(size=(30, 8)).astype("f4")
    expected = np.einsum("bi,bid->bd", weights, rows[indices])
    options = {"threads": threads}
    close(table.pool(indices, mode="sum", per_sample_weights=weights, **options), expected)
    kept = indices != 3
    expected = np.einsum("bi,bid->bd", weights * kept, rows[indices])
    found = table.pool(indices, mode="sum", per_sample_weights=weights, padding_idx=3, **options)
    close(found, expected)
    mean = np.einsum("bi,bid->bd", kept, rows[indices]) / np.maximum(kept.sum(1), 1)[:, None]
    close(table.pool(indices, mode="mean", padding_idx=3, **options), mean)
    from_end = 3 - SHAPE[0]
    close(table.pool(indices, mode="mean", padding_idx=from_end, **options), mean)


def test_out(blob, tables):
    table, indices = blob["tt"], np.arange(6).reshape(2, 3)
    out = np.full((2, SHAPE[1]), np.nan, "f4")
    assert table.pool(indices, mode="sum", out=out) is out
    close(out, tables["tt"][indices].sum(1))
    before = out.copy()
    for threads in (1, 2):
        with pytest.raises(IndexError, match="index 500 at position 5"):
            wrong = [[0, 1, 2], [3, 4, 500]]
            table.pool(wrong, mode="sum", out=out, threads=threads)
        assert np.array_equal(out, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", (1, 2, 7))
def test_retrieval(blob, tables, name, threads):
    table, rows = blob[name], tables[name]
    queries = random(8).normal(size=(5, SHAPE[1])).astype("f4")
    scores = table.scores(queries, threads=threads)
    close(scores, queries @ rows.T)
    assert np.array_equal(table.scores(queries[2], threads=threads), scores[2])
    part = table.scores(queries, rows=(10, 13), threads=threads)
    assert np.array_equal(part, scores[:, 10:13])
    best = np.argsort(-scores, axis=1, kind="stable")
    indices, found = table.top_k(queries, 10, threads=threads)
    assert indices.dtype == np.int64 and np.array_equal(indices, best[:, :10])
    assert np.array_equal(found, np.take_along_axis(scores, indices, 1))
    indices, found = table.top_k(queries[1], 4, rows=(100, 103), threads=threads)
    assert set(indices[:3]) == {100, 101, 102} and indices[3] == -1 and found[3] == -np.inf


@pytest.mark.parametrize("threads", (1, 2))
def test_exclusion(blob, threads):
    table, queries = blob["tt"], random(8).normal(size=(3, SHAPE[1])).astype("f4")
    best, _ = table.top_k(queries, 40)
    found, _ = table.top_k(queries[0], 20, exclude=best[0, 19::-1], threads=threads)
    assert np.array_equal(found, best[0, 20:40])
    lists = [best[0, :10].tolist(), [], best[2, 5:0:-1]]
    found, _ = table.top_k(queries, 20, exclude=lists, threads=threads)
    assert np.array_equal(found[0], best[0, 10:30])
    assert np.array_equal(found[1], best[1, :20])
    assert np.array_equal(found[2], np.append(best[2, 0], best[2, 6:25]))
    assert np.array_equal(table.top_k(queries, 20, exclude=[])[0], best[:, :20])


def test_bias():
    rows = random(3).normal(size=(50, 4)).astype("f4")
    bias = random(4).normal(size=(50, 1)).astype("f4")
    names = [{"name": name, "tensor": name} for name in ("rows", "bias")]
    blob = ttrec.convert({"rows": rows, "bias": bias}, {"table": names}, progress=False)
    query = random(5).normal(size=4).astype("f4")
    found, scores = blob["rows"].top_k(query, 50, bias=blob["bias"])
    expected = rows.astype("f8") @ query + bias[:, 0]
    assert np.array_equal(found, np.argsort(-expected))
    close(scores, expected[found])


def test_golden(golden):
    blob = ttrec.convert(golden / "fbtt_d3.safetensors", golden / "fbtt_d3.toml", progress=False)
    expected, item = np.load(golden / "fbtt_d3.expected.npz"), blob["item"]
    bags = (expected["indices"], expected["offsets"])
    close(item.lookup(expected["indices"]), expected["rows"])
    for mode in ("sum", "mean", "max"):
        close(item.pool(*bags, mode=mode, include_last_offset=True), expected[mode])
    weights = {"per_sample_weights": expected["weights"], "include_last_offset": True}
    close(item.pool(*bags, mode="sum", **weights), expected["weighted_sum"])


def test_ranker(golden):
    blob = ttrec.convert(golden / "dlrm_plain.pt", progress=False)
    expected, ranker = np.load(golden / "dlrm_plain.expected.npz"), blob.ranker()
    assert blob.has_model and ranker.num_dense == 13 and set(ranker.poolings) == {"sum"}
    assert ranker.tables == [f"emb_l.{k}" for k in range(4)]
    lists = [(expected[f"indices_{k}"], expected[f"offsets_{k}"]) for k in range(4)]
    named = dict(zip(ranker.tables, lists))
    for bags in (lists, named):
        found = ranker.score(expected["dense"], bags, include_last_offset=True)
        np.testing.assert_allclose(found, expected["prob"], atol=1e-6)
    logits = ranker.score(expected["dense"], lists, include_last_offset=True, logits=True)
    np.testing.assert_allclose(logits, expected["logit"], atol=1e-5)

    # A user's bag and dense features once, and candidates in one table.
    candidates, user = np.arange(20), [[4], [5, 6], [7]]
    once = [np.array([bag]) for bag in user]
    found = ranker.rank(expected["dense"][0], [*once, candidates])
    repeated = [np.array([bag] * 20) for bag in user]
    dense = np.repeat(expected["dense"][:1], 20, 0)
    assert np.array_equal(found, ranker.score(dense, [*repeated, candidates]))


def test_mapping(blob, blobs):
    assert blob.names == blob.keys() == list(blob) == list(NAMES) and len(blob) == 3
    assert "tt" in blob and "no" not in blob and 3 not in blob
    assert blob.get("no") is None and blob.get("no", 3) == 3 and blob.get("tt").name == "tt"
    assert [table.name for table in blob.values()] == list(dict(blob.items())) == list(NAMES)
    with pytest.raises(KeyError, match="no table .*no.*dense"):
        blob["no"]
    with pytest.raises(ValueError, match="the blob has no model"):
        blob.ranker()
    tt, dense = blob["tt"], blob["dense"]
    assert (tt.representation, tt.row_factors, tt.ranks) == ("tt", [8, 9, 7], [5, 4])
    assert (dense.representation, dense.ranks, dense.nbytes) == ("dense", None, 500 * 12 * 4)
    assert "500 x 12, tt, f32" in repr(tt)


def test_files(blob, blobs, tmp_path):
    path = tmp_path / "model.ttr"
    path.write_bytes(blob.to_bytes())
    with ttrec.open(path) as opened:
        assert opened.path == path and opened.nbytes == path.stat().st_size
        opened.verify()
        table = opened["tt"]
        copies = [pickle.loads(pickle.dumps(x)) for x in (opened, blob)]
    for copy in copies:
        assert np.array_equal(copy["tt"].lookup(3), table.lookup(3))
    with pytest.raises(ValueError, match="the blob is closed"):
        opened["tt"]
    assert "closed" in repr(opened)
    damaged = bytearray(blob.to_bytes())
    damaged[-100] ^= 1
    with pytest.raises(ttrec.BlobError):
        ttrec.Blob.from_bytes(bytes(damaged)).verify()
    with pytest.raises(FileNotFoundError, match="no.ttr: cannot open"):
        ttrec.open(tmp_path / "no.ttr")
    path.write_bytes(b"not a blob" * 20)
    with pytest.raises(ttrec.BlobError, match="invalid blob"):
        ttrec.open(path)


def test_threads_of_python(blob, tables):
    """Calls of several Python threads on the same objects."""
    table, indices = blob["tt"], random(9).integers(0, SHAPE[0], (200, 20))
    expected = table.pool(indices, mode="mean")
    wrong = []

    def run():
        for _ in range(20):
            if not np.array_equal(table.pool(indices, mode="mean", threads=2), expected):
                wrong.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_fork(blob, tables):
    """A forked process has no threads of its parent's."""
    indices = random(9).integers(0, SHAPE[0], (200, 20))
    expected = blob["tt"].pool(indices, mode="mean", threads=2)
    child = os.fork()
    if child == 0:
        status = 2
        try:
            found = blob["tt"].pool(indices, mode="mean", threads=2)
            again = ttrec.convert({"x": tables["dense"].astype("f4")}, progress=False)
            status = int(not np.array_equal(found, expected) or len(again) != 1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0

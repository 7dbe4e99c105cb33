"""Writes the same rows as Parquet (pyarrow 26), text and compressed text (needs the program zstd)."""

import bz2
import lzma
import random
import subprocess
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

draw = random.Random(7).random
rows = []
for at in range(240):
    ids = [int(draw() * draw() * 90) for _ in range(int(draw() * 5))]
    rows.append(
        {
            "y": draw() < 0.4,
            "x": None if draw() < 0.1 else float("nan") if draw() < 0.1 else int(draw() * 99) / 8,
            "price": Decimal(int(draw() * 10**4) - 500).scaleb(-2),
            "ids": None if draw() < 0.1 else [None if draw() < 0.1 else one for one in ids],
            "tags": ["abc"[int(draw() * 3)] * 9 for _ in range(int(draw() * 3))],
            "shop": Decimal(int(draw() * 7)),
            "code": float(int(draw() * 6)) if draw() < 0.8 else float("nan"),
        }
    )
schema = pa.schema(
    {
        "y": pa.string(),
        "x": pa.float64(),
        "price": pa.decimal128(8, 2),
        "ids": pa.list_(pa.int64()),
        "tags": pa.large_list(pa.string()),
        "shop": pa.decimal128(30, 3),
        "code": pa.float32(),
    }
)
table = pa.Table.from_pylist([{**row, "y": str(row["y"])} for row in rows], schema)
for codec, version in [("zstd", "2.0"), ("brotli", "1.0")]:
    pq.write_table(
        table,
        f"rows.{codec}.parquet",
        compression=codec,
        data_page_version=version,
        data_page_size=128,
        write_batch_size=16,
        row_group_size=100,
        use_dictionary=["tags"],
    )


def text(value):
    """A number without what makes it a float, or nothing."""
    if value is None or value != value:
        return ""
    return str(int(value)) if value == int(value) else str(value)


lines = ["y,x,price,ids,tags,shop,code"]
for row in rows:
    ids = "|".join(str(one) for one in row["ids"] or [] if one is not None)
    cells = [str(row["y"]), text(row["x"]), str(row["price"]), ids, "|".join(row["tags"])]
    lines.append(",".join(cells + [text(row["shop"]), text(row["code"])]))
whole = ("\n".join(lines) + "\n").encode()


def zstd(data):
    return subprocess.run(["zstd", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def write(name, data):
    with open(name, "wb") as file:
        file.write(data)


write("rows.csv", whole)
# Several streams or frames end to end, as parallel programs write them.
for suffix, pack in [("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]:
    # A frame that readers of Zstandard skip.
    between = b"\x57\x2a\x4d\x18\x03\0\0\0abc" if suffix == "zst" else b""
    write(f"rows.csv.{suffix}", pack(whole[:4000]) + between + pack(whole[4000:]))

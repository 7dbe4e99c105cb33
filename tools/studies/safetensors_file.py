"""Reads safetensors files, for the other programs of this directory. Needs numpy."""

import json

import numpy as np

FORMATS = {"F16": np.float16, "F32": np.float32, "I64": np.int64}


def load(path):
    """The tensors of a safetensors file, which are read where they are used, and its metadata.
    Tensors of other types are left out."""
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    metadata = header.pop("__metadata__", {})
    data = np.memmap(path, mode="r", offset=start)
    tensors = {
        name: data[slice(*of["data_offsets"])].view(FORMATS[of["dtype"]]).reshape(of["shape"])
        for name, of in header.items()
        if of["dtype"] in FORMATS
    }
    return tensors, metadata

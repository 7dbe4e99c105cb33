"""Writes the ONNX models of this directory: `python write_onnx.py` with the package onnx installed.

Every tensor has the values 0, 1, 2, 3, 4 and 100 in two rows, in each element type and each way of
storing them that the package has.
"""

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

values = np.array([[0, 1, 2], [3, 4, 100]])
TYPES = {"float": "<f4", "double": "<f8", "float16": "<f2", "bfloat16": ml_dtypes.bfloat16,
         "int8": "i1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
         "uint8": "u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}


def model(initializers, sparse=()):
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], initializers, sparse_initializer=sparse)
    return helper.make_model(graph, producer_name="write_onnx.py")


raw = [numpy_helper.from_array(values.astype(kind), f"raw.{name}") for name, kind in TYPES.items()]
listed = [helper.make_tensor(f"listed.{name}", getattr(TensorProto, name.upper()), values.shape,
                             values.astype(kind).flatten()) for name, kind in TYPES.items()]
others = [
    numpy_helper.from_array(values != 0, "raw.bool"),
    helper.make_tensor("listed.bool", TensorProto.BOOL, values.shape, (values != 0).flatten()),
    helper.make_tensor("listed.negative", TensorProto.INT8, [2], [-1, -128]),
    helper.make_tensor("scalar", TensorProto.FLOAT, [], [2.5]),
    helper.make_tensor("empty", TensorProto.FLOAT, [0, 3], []),
    helper.make_tensor("text", TensorProto.STRING, [1], [b"a"]),
    helper.make_tensor("complex", TensorProto.COMPLEX64, [1], [1j]),
    numpy_helper.from_array(values.astype(ml_dtypes.float8_e4m3fn), "float8"),
]
sparse = helper.make_sparse_tensor(helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0]),
                                   helper.make_tensor("at", TensorProto.INT64, [1], [2]), [6])
onnx.save(model(raw + listed + others, [sparse]), "initializers.onnx")

onnx.save(model([numpy_helper.from_array(values.astype(TYPES[name]), name) for name in ("float", "int8")]),
          "external.onnx", save_as_external_data=True, location="external.onnx.data",
          size_threshold=0)

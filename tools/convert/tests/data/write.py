"""Writes the fixtures of this directory: `python write.py` with numpy installed; torch is not needed.

The torch files are assembled by hand: the pickles name torch's functions and storage classes, and each
storage is a persistent id, as torch.save writes them.
"""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np


def stand_in(module, *names):
    """Importable stand-ins, so that the pickler can refer to torch's names."""
    target = sys.modules.setdefault(module, types.ModuleType(module))
    for name in names:
        value = type(name, (), {"__module__": module, "__qualname__": name})
        setattr(target, name, value)
    return target


stand_in("torch", "FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage", "LongStorage",
         "IntStorage", "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage")
rebuild = stand_in("torch._utils", "_rebuild_tensor_v2")._rebuild_tensor_v2
torch = sys.modules["torch"]
CLASSES = {"f4": "Float", "f8": "Double", "f2": "Half", "bf": "BFloat16", "i8": "Long", "i4": "Int",
           "i2": "Short", "i1": "Char", "u1": "Byte", "b1": "Bool"}


class Storage:
    def __init__(self, key, kind, values):
        self.key, self.cls, self.values = key, getattr(torch, CLASSES[kind] + "Storage"), values
        # bfloat16 is the upper half of float32.
        self.data = (np.asarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes() \
            if kind == "bf" else np.asarray(values, kind).tobytes()


class Tensor:
    def __init__(self, storage, shape, stride=None, offset=0):
        if stride is None:
            stride = tuple(np.cumprod((1,) + shape[:0:-1])[::-1].tolist())
        self.args = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return rebuild, self.args


class Command:
    """What an attacker pickles: unpickled by Python, it would create a file."""

    def __reduce__(self):
        import os
        return os.system, ("touch ttrec-was-here",)


def dump(stream, value, storages):
    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                storages[obj.key] = obj
                return ("storage", obj.cls, obj.key, "cpu", len(obj.values))

    Pickler(stream, 2).dump(value)


def write_legacy(path, value):
    stream, storages = io.BytesIO(), {}
    for header in (0x1950A86A20F9469CFC6C, 1001,
                   {"protocol_version": 1001, "little_endian": True,
                    "type_sizes": {"short": 2, "int": 4, "long": 4}}):
        pickle.dump(header, stream, 2)
    dump(stream, value, storages)
    pickle.dump(sorted(storages), stream, 2)
    for key in sorted(storages):
        stream.write(struct.pack("<q", len(storages[key].values)) + storages[key].data)
    open(path, "wb").write(stream.getvalue())


def write_zip(path, value):
    stream, storages = io.BytesIO(), {}
    dump(stream, value, storages)
    with zipfile.ZipFile(path, "w") as archive:
        def add(name, data):
            archive.writestr(zipfile.ZipInfo("archive/" + name), data)

        add("data.pkl", stream.getvalue())
        add("byteorder", b"little")
        for key, storage in storages.items():
            add("data/" + key, storage.data)
        add("version", b"3\n")


def six(key="0"):
    return Storage(key, "f4", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])


write_legacy("legacy.pt", {
    "state_dict": collections.OrderedDict(
        weight=Tensor(six(), (2, 3)), index=Tensor(Storage("1", "i8", [-1, 2**62, 7]), (3,))),
    "optimizer": {"state": {0: {"momentum": Tensor(Storage("2", "f4", [9.0]), (1,))}},
                  "param_groups": [{"lr": 0.1, "params": [0]}]},
    "epoch": 3,
})

shared = six("0")
write_zip("views.pt", {
    "plain": Tensor(shared, (2, 3)),
    "transposed": Tensor(shared, (3, 2), (1, 3)),
    "column": Tensor(shared, (2,), (3,), 1),
    "permuted": Tensor(Storage("1", "f4", list(range(24))), (4, 2, 3), (1, 12, 4)),
    "expanded": Tensor(shared, (2, 2), (0, 1), 4),
    "scalar": Tensor(shared, (), (), 5),
    "empty": Tensor(shared, (0, 3), (3, 1)),
    "types": [Tensor(Storage(kind, kind, [0, 1, 1, 0] if kind == "b1" else [0, 1, 2, 100]), (2, 2))
              for kind in CLASSES],
})
write_zip("command.pt", {"weight": Tensor(six(), (2, 3)), "extra": Command()})
write_legacy("command_legacy.pt", {"weight": Tensor(six(), (2, 3)), "extra": Command()})
write_zip("same_names.pt", {"a.b": Tensor(six(), (6,)), "a": {"b": Tensor(six(), (2, 3))}})
write_zip("same_names_state.pt", {"w": Tensor(six(), (6,)), "state_dict": {"w": Tensor(six(), (2, 3))}})

values = np.array([[0, 1, 2], [3, 4, 100]])
types_ = ["<f8", "<f4", "<f2", ">f8", ">f4", ">f2", "<i8", "<i4", "<i2", "|i1", ">i8", ">i2",
          "<u8", "<u4", "<u2", "|u1", ">u4"]
arrays = {t.replace("<", "le_").replace(">", "be_").replace("|", "ne_"): values.astype(t) for t in types_}
arrays["bool"] = values != 0
arrays["fortran"] = np.asfortranarray(np.arange(24, dtype="<f4").reshape(2, 3, 4))
arrays["scalar"] = np.float32(2.5)
arrays["empty"] = np.zeros((0, 3), "<i8")
np.savez("arrays.npz", **arrays)
np.savez_compressed("arrays_compressed.npz", **arrays)
np.save("fortran_be.npy", np.asfortranarray(values.astype(">f4")))
np.save("row_major.npy", values.astype("<i4"))
np.save("text.npy", np.array(["a", "b"]))

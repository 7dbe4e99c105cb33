"""Writes the fixtures of this directory: `python write.py` with numpy installed; torch is not needed.

The torch files are assembled by hand: the pickles name torch's functions and storage classes, and each
storage is a persistent id, as torch.save writes them.
"""

import collections
import io
import os
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


# What several processes save. The classes are stand-ins with the attributes of torch's.
stand_in("torch", "Size", "float32", "strided", "device")
META, SHARD = "torch.distributed.checkpoint.metadata", "torch.distributed._shard"
FILES = "torch.distributed.checkpoint.filesystem"
for module, names in [
        (META, ["Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata",
                "ChunkStorageMetadata"]),
        (FILES, ["_StorageInfo"]),
        (SHARD + ".sharded_tensor.api", ["ShardedTensor"]),
        (SHARD + ".sharded_tensor.shard", ["Shard"]),
        (SHARD + ".sharded_tensor.metadata", ["ShardedTensorMetadata"]),
        (SHARD + ".metadata", ["ShardMetadata"]),
        ("torch.distributed.tensor", ["DTensor"]),
        ("torch.distributed.tensor._shards_wrapper", ["LocalShardsWrapper"]),
        ("torch._utils", ["_rebuild_wrapper_subclass"]),
        ("torch._tensor", ["_rebuild_from_type_v2"])]:
    stand_in(module, *names)


def make(module, name, **attributes):
    made = getattr(sys.modules[module], name)()
    made.__dict__.update(attributes)
    return made


class Call:
    """An object that pickles as a call, perhaps with a state."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def size(*extents):
    return Call(torch.Size, extents)


def wrapped(module, name, shape, state):
    cls, utils = getattr(sys.modules[module], name), sys.modules["torch._utils"]
    arguments = (cls, torch.float32, shape, (shape[1], 1), 0, torch.strided,
                 Call(torch.device, "cpu"), False)
    return Call(sys.modules["torch._tensor"]._rebuild_from_type_v2,
                utils._rebuild_wrapper_subclass, cls, arguments, state)


def dtensor(shape, local):
    return wrapped("torch.distributed.tensor", "DTensor", shape,
                   (None, {"_local_tensor": local, "_spec": {"placements": ()}}))


def wrapper(shape, *parts, offsets=()):
    chunks = [make(META, "ChunkStorageMetadata", offsets=size(*offset)) for offset in offsets]
    meta = make(META, "TensorStorageMetadata", size=size(*shape), chunks=chunks)
    return wrapped("torch.distributed.tensor._shards_wrapper", "LocalShardsWrapper", shape,
                   (None, {"_local_shards": list(parts), "_storage_meta": meta}))


def sharded(shape, *parts, offsets=([0, 0],)):
    # These classes have slots: their state is (None, slots).
    def slots(module, name, **slots):
        return Call(getattr(sys.modules[module], name), state=(None, slots))

    shards = [slots(SHARD + ".sharded_tensor.shard", "Shard", tensor=part, metadata=slots(
                  SHARD + ".metadata", "ShardMetadata", shard_offsets=list(offset),
                  shard_sizes=list(part.args[2]), placement=None))
              for part, offset in zip(parts, offsets)]
    metadata = make(SHARD + ".sharded_tensor.metadata", "ShardedTensorMetadata",
                    size=size(*shape))
    return wrapped(SHARD + ".sharded_tensor.api", "ShardedTensor", shape,
                   (shards, metadata, None, None, False))


def columns(key):
    """The first of four columns, and the others."""
    four = np.arange(12, dtype="<f4").reshape(3, 4)
    return [Tensor(Storage(key + part, "f4", values.ravel()), values.shape)
            for part, values in [("a", four[:, :1]), ("b", four[:, 1:])]]


write_zip("sharded.pt", {
    "columns": sharded((3, 4), *columns("3"), offsets=[(0, 0), (0, 1)]),
    "columns_of_wrapper": dtensor((3, 4), wrapper((3, 4), *columns("4"), offsets=[(0, 0), (0, 1)])),
    "columns_of_nowhere": dtensor((3, 4), wrapper((3, 4), *columns("5"))),
    "overlapping": sharded((4, 3), Tensor(six("0"), (2, 3)), Tensor(six("1"), (2, 3)),
                           offsets=[(0, 0), (1, 0)]),
    "whole_dtensor": dtensor((2, 3), Tensor(six("0"), (2, 3))),
    "part_of_dtensor": dtensor((4, 3), Tensor(six("0"), (2, 3))),
    "whole_wrapper": dtensor((2, 3), wrapper((2, 3), Tensor(six("0"), (2, 3)))),
    "part_of_wrapper": dtensor((4, 3), wrapper((2, 3), Tensor(six("0"), (2, 3)))),
    "whole_sharded": sharded((2, 3), Tensor(six("1"), (2, 3))),
    "part_of_sharded": sharded((4, 3), Tensor(six("1"), (2, 3))),
    "no_shards": sharded((4, 3)),
    "plain": Tensor(six("2"), (3, 2)),
})


def write_distributed(folder, tensors, lost):
    """`tensors`: name to shape and parts, each a file, offsets, sizes and values."""
    os.makedirs(folder, exist_ok=True)
    files, state, storage = collections.defaultdict(bytes), {}, {}
    for name, (shape, parts) in tensors.items():
        chunks = [make(META, "ChunkStorageMetadata", offsets=size(*offsets), sizes=size(*sizes))
                  for _, offsets, sizes, _ in parts]
        state[name] = make(META, "TensorStorageMetadata", properties=None, size=size(*shape),
                           chunks=chunks)
        for file, offsets, sizes, values in parts:
            stream = io.BytesIO()
            write_zip(stream, Tensor(Storage("0", "f4", values), sizes))
            index = make(META, "MetadataIndex", fqn=name, index=None, offset=size(*offsets))
            storage[index] = make(FILES, "_StorageInfo", relative_path=file,
                                  offset=len(files[file]), length=len(stream.getvalue()))
            files[file] += stream.getvalue()
    # What is no tensor is a pickle.
    state["epoch"] = make(META, "BytesStorageMetadata")
    index = make(META, "MetadataIndex", fqn="epoch", index=None, offset=None)
    storage[index] = make(FILES, "_StorageInfo", relative_path=ranks[0],
                          offset=len(files[ranks[0]]), length=4)
    files[ranks[0]] += b"\x80\x02N."
    for file, data in files.items():
        if file not in lost:
            open(os.path.join(folder, file), "wb").write(data)
    metadata = make(META, "Metadata", state_dict_metadata=state, planner_data=None,
                    storage_data=storage)
    with open(os.path.join(folder, ".metadata"), "wb") as stream:
        pickle._Pickler(stream, 4).dump(metadata)


ranks = ["__0_0.distcp", "__1_0.distcp"]
table = np.arange(24, dtype="<f4").reshape(6, 4)
write_distributed("distributed", {
    "model.whole.weight": ((2, 3), [(ranks[0], (0, 0), (2, 3), [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])]),
    "model.rows.weight": ((6, 4), [(ranks[0], (0, 0), (3, 4), table[:3].ravel()),
                                   (ranks[1], (3, 0), (3, 4), table[3:].ravel())]),
    "model.columns.weight": ((6, 4), [(ranks[0], (0, 0), (6, 1), table[:, :1].ravel()),
                                      (ranks[1], (0, 1), (6, 3), table[:, 1:].ravel())]),
    "model.incomplete.weight": ((6, 4), [(ranks[0], (0, 0), (3, 4), table[:3].ravel())]),
    "model.overlapping.weight": ((6, 4), [(ranks[0], (0, 0), (4, 4), table[:4].ravel()),
                                          (ranks[1], (2, 0), (2, 4), table[2:4].ravel())]),
    "model.lost.weight": ((2, 2), [("__2_0.distcp", (0, 0), (2, 2), [0, 1, 2, 3])]),
    "model.outside.weight": ((2, 2), [("../__0_0.distcp", (0, 0), (2, 2), [0, 1, 2, 3])]),
    "optim.state.rows.exp_avg": ((1, 2), [(ranks[1], (0, 0), (1, 2), [7, 8])]),
}, lost=["__2_0.distcp", "../__0_0.distcp"])

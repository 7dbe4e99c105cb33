"""TorchRec: a DLRM, whole, sharded and quantised, and a directory of torch.distributed.checkpoint."""

import os

from checks import all_rows, convert, of, require, scores, ttrec

torch, torchrec = require("torch", "torchrec")
from torch import nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

WHO = of("torchrec")
torch.manual_seed(7)
# Not in alphabetic order, and not in that of the numbers.
SIZES, DIM, DENSE, SAMPLES = {"t_10": 90, "t_2": 140, "t_1": 20}, 8, 5, 64


def collection(pooling=PoolingType.SUM, device="cpu"):
    return EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name=name, embedding_dim=DIM, num_embeddings=rows,
                                   feature_names=["f" + name], pooling=pooling)
                for name, rows in SIZES.items()],
        device=torch.device(device),
    )


lengths = torch.randint(0, 5, (len(SIZES), SAMPLES), dtype=torch.int32)
values = torch.cat([torch.randint(0, rows, (int(of_table.sum()),))
                    for rows, of_table in zip(SIZES.values(), lengths)])
features = KeyedJaggedTensor(["f" + name for name in SIZES], values, lengths=lengths.flatten())
dense = torch.rand(SAMPLES, DENSE)
samples = {"dense": dense.numpy()}
for table, name in enumerate(SIZES):
    jagged = features["f" + name]
    samples |= {f"indices_{table}": jagged.values().numpy(),
                f"lengths_{table}": jagged.lengths().numpy()}


def dlrm(embeddings):
    return DLRM(embedding_bag_collection=embeddings, dense_in_features=DENSE,
                dense_arch_layer_sizes=[16, DIM], over_arch_layer_sizes=[16, 1])


model = dlrm(collection())
with torch.no_grad():
    expected = model(dense, features).squeeze(1).numpy()
torch.save(model.state_dict(), "dlrm.pt")
scores(convert("dlrm.pt"), samples, expected, f"{WHO}: DLRM: logits without a spec", "--logits")
torch.save({"epoch": 3, "model": model.state_dict()}, "nested.pt")
scores(convert("nested.pt"), samples, expected, f"{WHO}: DLRM in a dict: logits", "--logits")

names = [f"sparse_arch.embedding_bag_collection.embedding_bags.{name}." for name in SIZES]
spec = "[model]\n" + "".join(f'[[table]]\nprefix = "{name}"\n' for name in names)
try:
    from safetensors.torch import save_file
    save_file(model.state_dict(), "dlrm.safetensors")
    blob = convert("dlrm.safetensors", spec)
    scores(blob, samples, expected, f"{WHO}: DLRM in safetensors: logits", "--logits")
except ImportError:
    pass

mean = dlrm(collection(PoolingType.MEAN))
with torch.no_grad():
    averaged = mean(dense, features).squeeze(1).numpy()
torch.save(mean.state_dict(), "mean.pt")
blob = convert("mean.pt", spec.replace("[model]", '[model]\npooling = "mean"'))
scores(blob, samples, averaged, f"{WHO}: DLRM that averages: logits", "--logits")

# Quantised, as for inference.
from torchrec.inference.modules import quantize_embeddings
from torchrec.quant.embedding_modules import (
    quant_prep_enable_quant_state_dict_split_scale_bias_for_types as split_scale_bias,
)

for dtype, form in [(torch.qint8, "byte"), (torch.quint4x2, "nibble")]:
    model = dlrm(collection())
    split_scale_bias(model, [EmbeddingBagCollection])
    model = quantize_embeddings(model, dtype, inplace=True)
    with torch.no_grad():
        expected = model(dense, features).squeeze(1).numpy()
    # torch.save refuses parts of one memory that have different types.
    state = model.state_dict()
    state = {name: tensor.view(torch.uint8).clone() if name.endswith(".weight")
             and "embedding_bags" in name else tensor.clone() for name, tensor in state.items()}
    torch.save(state, "quantised.pt")
    quantised = spec.replace('."\n', f'."\nquantized = "{form}"\n')
    blob = convert("quantised.pt", quantised)
    scores(blob, samples, expected, f"{WHO}: rows of {form}s: logits", "--logits")

torch.save(quantize_embeddings(dlrm(collection()), torch.qint8, inplace=True).state_dict(),
           "within.pt")
said = ttrec("convert", "within.pt", "--spec", "spec.toml", "-o", "none.ttr", code=3)
assert "quant_prep_enable_quant_state_dict_split_scale_bias" in said, said

# Sharded, on one process.
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

os.environ["GLOO_SOCKET_IFNAME"] = "lo"
store = dist.FileStore(os.path.abspath("store"), 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
sharded = DistributedModelParallel(dlrm(collection()), device=torch.device("cpu"))
with torch.no_grad():
    expected = sharded(dense, features).squeeze(1).numpy()
torch.save(sharded.state_dict(), "sharded.pt")
# It sorts the names of the tables, which their model does not.
said = ttrec("convert", "sharded.pt", "-o", "none.ttr", code=3)
assert "lost the order" in said, said
blob = convert("sharded.pt", spec)
scores(blob, samples, expected, f"{WHO}: DistributedModelParallel: logits", "--logits")

import torch.distributed.checkpoint as checkpoint

checkpoint.save({"model": sharded.state_dict()}, checkpoint_id="directory")
model_spec = "[model]\nprefix = \"model.\"\n" + "".join(
    f'[[table]]\nprefix = "model.{name}"\n' for name in names)
blob = convert("directory", model_spec)
scores(blob, samples, expected, f"{WHO}: torch.distributed.checkpoint: logits", "--logits")
# Shards: each table whole, or its columns in two parts.
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints

for kind in ["table_wise", "column_wise"]:
    module = nn.Sequential(collection())
    limits = ParameterConstraints(sharding_types=[kind], min_partition=DIM // 2)
    sharder = EmbeddingBagCollectionSharder()
    planner = EmbeddingShardingPlanner(topology=Topology(world_size=1, compute_device="cpu"),
                                       constraints=dict.fromkeys(SIZES, limits))
    sharded = DistributedModelParallel(module, plan=planner.plan(module, [sharder]),
                                       sharders=[sharder], device=torch.device("cpu"))
    state = sharded.state_dict()
    torch.save(state, "sharded.pt")
    checkpoint.save(state, checkpoint_id=kind)
    tables = "".join(f'[[table]]\nname = "{name}"\nprefix = "0.embedding_bags.{name}."\n'
                     for name in SIZES)
    for path in ["sharded.pt", kind]:
        blob = convert(path, tables)
        for name in SIZES:
            shards = state[f"0.embedding_bags.{name}.weight"].local_shards()
            weight = torch.cat([shard.tensor.detach() for shard in shards], 1)
            all_rows(blob, name, weight, f"{WHO}: {len(shards)} shards in {path}: {name}")
dist.destroy_process_group()

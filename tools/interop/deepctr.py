"""DeepCTR-Torch: the embeddings of its models, saved as a state_dict and as a whole model."""

from checks import all_rows, convert, np, of, offered, require

torch, deepctr_torch = require("torch", "deepctr_torch")
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat, get_feature_names
from deepctr_torch.models import DCN, DIN, DeepFM

WHO = of("deepctr-torch")
SIZES, DIM, SAMPLES = {"user": 90, "item": 140, "shop": 20}, 8, 256
draw = np.random.default_rng(5)

columns = [SparseFeat(name, rows, embedding_dim=DIM) for name, rows in SIZES.items()]
columns += [DenseFeat("price", 1)]
inputs = {name: draw.integers(0, rows, SAMPLES) for name, rows in SIZES.items()}
inputs["price"] = draw.random(SAMPLES).astype("float32")
labels = draw.integers(0, 2, SAMPLES).astype("float32")

history = [VarLenSparseFeat(SparseFeat("hist_item", SIZES["item"], embedding_dim=DIM,
                                       embedding_name="item"), maxlen=4, length_name="seq_length")]
with_history = {**inputs, "hist_item": draw.integers(0, SIZES["item"], (SAMPLES, 4)),
                "seq_length": draw.integers(1, 5, SAMPLES)}

for build, given in [
    (lambda: DeepFM(columns, columns, dnn_hidden_units=(16, 8)), inputs),
    (lambda: DCN(columns, columns, dnn_hidden_units=(16, 8)), inputs),
    (lambda: DIN(columns + history, ["item"], dnn_hidden_units=(16, 8)), with_history),
]:
    model = build()
    model.compile("adagrad", "binary_crossentropy")
    model.fit(given, labels, batch_size=64, epochs=1, verbose=0)
    name = type(model).__name__
    torch.save(model.state_dict(), "weights.h5")
    torch.save(model, "whole.h5")
    for path, how in [("weights.h5", "state_dict"), ("whole.h5", "whole model")]:
        said, spec = offered(path)
        assert "dnn" not in spec, said
        blob = convert(path, spec)
        for table in SIZES:
            weight = model.embedding_dict[table].weight.detach()
            all_rows(blob, f"embedding_dict.{table}.weight", weight,
                     f"{WHO}: {name}, {how}: embedding_dict.{table}")

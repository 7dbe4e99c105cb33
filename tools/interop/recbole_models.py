"""RecBole: the checkpoints of its trainer, whose configuration is a pickled object."""

import pathlib

from checks import all_rows, convert, np, of, require, scores

torch, recbole = require("torch", "recbole")
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

WHO = of("recbole")
draw = np.random.default_rng(6)
folder = pathlib.Path("dataset/small")
folder.mkdir(parents=True)
lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
lines += [
    f"u{user}\ti{int(draw.random() ** 2 * 50)}\t{draw.integers(1, 6)}\t{time}"
    for user in range(40) for time in range(12)
]
(folder / "small.inter").write_text("\n".join(lines) + "\n")


def train(model, **settings):
    config = {"load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}, "data_path": "dataset", "epochs": 2, "embedding_size": 8, "checkpoint_dir": model,
              "show_progress": False, "state": "ERROR", "use_gpu": False, "train_batch_size": 64,
              **settings}
    config = Config(model=model, dataset="small", config_dict=config)
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    batches, valid, _ = data_preparation(config, dataset)
    trained = get_model(model)(config, batches.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, trained)
    trainer.fit(batches, valid, show_progress=False)
    (checkpoint,) = pathlib.Path(model).glob("*.pth")
    saved = torch.load(checkpoint, weights_only=False)
    trained.load_state_dict(saved["state_dict"])
    trained.load_other_parameter(saved["other_parameter"])
    return checkpoint, trained.eval(), dataset


checkpoint, model, dataset = train("BPR")
SPEC = """
[model]
top = []
tables = ["user_embedding.weight", "item_embedding.weight"]
pooling = "sum"
interaction = "dot"
"""
blob = convert(checkpoint, SPEC)
users, items = np.arange(1, 31), np.arange(30) % (dataset.item_num - 1) + 1
interaction = {"user_id": torch.tensor(users), "item_id": torch.tensor(items)}
with torch.no_grad():
    expected = model.predict(interaction).numpy()
samples = {"indices_0": users, "offsets_0": np.arange(30),
           "indices_1": items, "offsets_1": np.arange(30)}
scores(blob, samples, expected, f"{WHO}: BPR: predict", "--logits")

no_negatives = {"train_neg_sample_args": None}
for name, settings, tables in [
    ("LightGCN", {}, ["user_embedding.weight", "item_embedding.weight"]),
    ("SASRec", {"hidden_size": 8, "inner_size": 16, **no_negatives}, ["item_embedding.weight"]),
    ("GRU4Rec", no_negatives, ["item_embedding.weight"]),
    ("DeepFM", {"threshold": {"rating": 3}, "eval_args": {"mode": "labeled"},
                "metrics": ["AUC"], "valid_metric": "AUC"},
     ["token_embedding_table.embedding.weight"]),
]:
    checkpoint, model, _ = train(name, **settings)
    blob = convert(checkpoint, "".join(f'[[table]]\ntensor = "{table}"\n' for table in tables))
    for table in tables:
        weight = dict(model.named_parameters())[table].detach()
        all_rows(blob, table, weight, f"{WHO}: {name}: {table}")

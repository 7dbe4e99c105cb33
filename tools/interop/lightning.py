"""PyTorch Lightning: a checkpoint of `Trainer.save_checkpoint`, with what a run leaves in it."""

from checks import convert, np, of, require, scores

torch, pl = require("torch", "pytorch_lightning")
nn = torch.nn
WHO = of("pytorch-lightning")
pl.seed_everything(2, verbose=False)
ROWS, DIM, SAMPLES = (40, 70, 30), 4, 96


class Ranker(pl.LightningModule):
    """One id for each of three features, one vector after another, and an MLP."""

    def __init__(self, learning_rate=0.02, sizes=ROWS):
        super().__init__()
        self.save_hyperparameters()
        self.embeddings = nn.ModuleList(nn.Embedding(rows, DIM) for rows in sizes)
        self.mlp = nn.Sequential(
            nn.Linear(DIM * len(sizes), 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, ids):
        vectors = [embedding(ids[:, at]) for at, embedding in enumerate(self.embeddings)]
        return self.mlp(torch.cat(vectors, 1)).squeeze(1)

    def training_step(self, batch, _):
        ids, labels = batch
        loss = nn.functional.binary_cross_entropy_with_logits(self(ids), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.learning_rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


ids = torch.stack([torch.randint(0, rows, (SAMPLES,)) for rows in ROWS], 1)
labels = (ids.sum(1) % 2).float()
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids, labels), batch_size=16)
model = Ranker()
trainer = pl.Trainer(max_epochs=2, logger=False, enable_progress_bar=False, accelerator="cpu",
                     enable_model_summary=False,
                     callbacks=[pl.callbacks.ModelCheckpoint(dirpath="kept", monitor="loss")])
trainer.fit(model, data)
trainer.save_checkpoint("last.ckpt")

SPEC = """
[model]
top = "mlp."
tables = ["embeddings.0.weight", "embeddings.1.weight", "embeddings.2.weight"]
interaction = "cat"
pooling = "sum"
"""
model.eval()
with torch.no_grad():
    expected = model(ids).numpy()
samples = {}
for table in range(len(ROWS)):
    samples |= {f"indices_{table}": ids[:, table].numpy(),
                f"offsets_{table}": np.arange(SAMPLES)}
blob = convert("last.ckpt", SPEC)
scores(blob, samples, expected, f"{WHO}: logits of a checkpoint of the trainer", "--logits")

"""tensorly-torch: embeddings in blocktt form, trained as such or made from a layer."""

from checks import convert, equal, of, require, rows

torch, tltorch = require("torch", "tltorch")
torch.manual_seed(3)
WHO = of("tensorly-torch")
ROWS, DIM = 120, 16

layer = torch.nn.Embedding(ROWS, DIM)
made = {
    "FactorizedEmbedding": tltorch.FactorizedEmbedding(
        ROWS, DIM, factorization="blocktt", rank=8),
    "FactorizedEmbedding.from_embedding": tltorch.FactorizedEmbedding.from_embedding(
        layer, factorization="blocktt", rank=8),
}
for how, embedding in made.items():
    torch.save({"emb." + key: value for key, value in embedding.state_dict().items()}, "emb.pt")
    blob = convert("emb.pt", f'[[table]]\nprefix = "emb."\nnum_embeddings = {ROWS}\n')
    with torch.no_grad():
        expected = embedding(torch.arange(ROWS)).numpy()
    equal(rows(blob, "emb", range(ROWS)), expected, f"{WHO}: {how}")

several = tltorch.FactorizedEmbedding(ROWS, DIM, factorization="blocktt", rank=8, n_layers=2)
torch.save(several.state_dict(), "several.pt")
spec = "".join(
    f'[[table]]\nname = "{table}"\nprefix = ""\ntable = {table}\nnum_embeddings = {ROWS}\n'
    for table in range(2))
blob = convert("several.pt", spec)
for table in range(2):
    with torch.no_grad():
        expected = several(torch.arange(ROWS), table).numpy()
    found = rows(blob, str(table), range(ROWS))
    equal(found, expected, f"{WHO}: n_layers=2, table {table}")

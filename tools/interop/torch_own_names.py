"""A PyTorch model with names of its own, as tutorials save it: {"epoch", "model", "optimizer"}."""

from checks import bags, convert, equal, np, of, offered, require, rows, scores, ttrec

torch = require("torch")
nn = torch.nn
torch.manual_seed(1)
WHO = of("torch")
USERS, ITEMS, DIM, DENSE, SAMPLES = 500, 300, 8, 5, 64


class Ranker(nn.Module):
    """Dense features, two bags of ids, dot products, and layers on top."""

    def __init__(self):
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(DENSE, 16), nn.ReLU(), nn.Linear(16, DIM), nn.ReLU())
        self.users = nn.EmbeddingBag(USERS, DIM)
        self.items = nn.EmbeddingBag(ITEMS, DIM, padding_idx=0)
        self.hidden = nn.Linear(DIM + 3, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, dense, users, items):
        x = self.bottom(dense)
        vectors = torch.stack([x, self.users(*users), self.items(*items)], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        low = torch.tril_indices(3, 3, -1)
        inputs = torch.cat([x, products[:, low[0], low[1]]], 1)
        return torch.sigmoid(self.out(torch.relu(self.hidden(inputs)))).squeeze(1)


def draw(num_embeddings):
    lengths = torch.randint(0, 5, (SAMPLES,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return torch.randint(0, num_embeddings, (int(offsets[-1]),)), offsets[:-1]


model = Ranker()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
dense, users, items = torch.rand(SAMPLES, DENSE), draw(USERS), draw(ITEMS)
items[0][::4] = 0
PADDING = ["--padding-idx", "items.weight=0"]
for _ in range(5):
    optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy(model(dense, users, items), dense[:, 0].round())
    loss.backward()
    optimizer.step()
state = {"epoch": 5, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": loss}
torch.save(state, "model.pt")

said, spec = offered("model.pt")
assert "pooling" in said, said
assert "exp_avg" not in said and "hidden" not in spec.split("[[table]]")[1], said

SPEC = """
[model]
prefix = "model."
bottom = "bottom."
top = ["hidden.", "out."]
tables = ["users.weight", "items.weight"]
pooling = "mean"
"""
with torch.no_grad():
    expected = model(dense, users, items).numpy()
samples = {"dense": dense.numpy()}
for table, (indices, offsets) in enumerate([users, items]):
    samples |= {f"indices_{table}": indices.numpy(), f"offsets_{table}": offsets.numpy()}
blob = convert("model.pt", SPEC)
scores(blob, samples, expected, f"{WHO}: scores of {{epoch, model, optimizer}}", *PADDING)

np.savez("samples.npz", **samples)
np.save("expected.npy", expected)
ttrec("convert", "model.pt", "--spec", "spec.toml", "-o", "again.ttr", "--check", "samples.npz",
      "expected.npy", *PADDING)
wrong = SPEC.replace('"mean"', '"sum"')
with open("spec.toml", "w") as file:
    file.write(wrong)
ttrec("convert", "model.pt", "--spec", "spec.toml", "-o", "wrong.ttr", "--check", "samples.npz",
      "expected.npy", *PADDING, code=1)

# The other ways to save it.
without = SPEC.replace('prefix = "model."\n', "")
torch.save(model.state_dict(), "state.pt")
scores(convert("state.pt", without), samples, expected, f"{WHO}: scores of a state_dict",
       *PADDING)
torch.save(model, "whole.pt")
scores(convert("whole.pt", without), samples, expected, f"{WHO}: scores of a whole module",
       *PADDING)
torch.save(state, "legacy.pt", _use_new_zipfile_serialization=False)
scores(convert("legacy.pt", SPEC), samples, expected, f"{WHO}: scores of the format before 1.6",
       *PADDING)
torch.save(nn.DataParallel(model).state_dict(), "parallel.pt")
scores(convert("parallel.pt", without.replace("[model]", '[model]\nprefix = "module."')), samples,
       expected, f"{WHO}: scores of a DataParallel", *PADDING)

# Bags as torch pools them, with padding and weights.
for mode in ["sum", "mean", "max"]:
    bag = nn.EmbeddingBag(ITEMS, DIM, mode=mode, padding_idx=7)
    bag.load_state_dict({"weight": model.items.weight.detach()})
    indices = items[0].clone()
    indices[::3] = 7
    pooled = bag(indices, items[1]).detach()
    found = bags("again.ttr", "items.weight", indices, items[1], mode, "--padding-idx", 7,
                 "--include-last-offset", "false")
    equal(found, pooled, f"{WHO}: EmbeddingBag(mode={mode!r}, padding_idx=7)")
weights = torch.rand(len(items[0]))
summed = nn.functional.embedding_bag(items[0], model.items.weight, items[1], mode="sum",
                                     per_sample_weights=weights).detach()
found = bags("again.ttr", "items.weight", items[0], items[1], "sum",
             "--include-last-offset", "false", weights=weights)
equal(found, summed, f"{WHO}: per_sample_weights")

# Quantised bags keep their codes.
weight = model.items.weight.detach()
for bits, prepack, unpack in [
    (8, torch.ops.quantized.embedding_bag_byte_prepack, "embedding_bag_byte_unpack"),
    (4, torch.ops.quantized.embedding_bag_4bit_prepack, "embedding_bag_4bit_unpack"),
]:
    packed = prepack(weight)
    torch.save({"emb.weight": packed}, "packed.pt")
    form = "byte" if bits == 8 else "nibble"
    blob = convert("packed.pt", f'[[table]]\ntensor = "emb.weight"\nquantized = "{form}"\n')
    expected = getattr(torch.ops.quantized, unpack)(packed)
    equal(rows(blob, "emb.weight", range(ITEMS)), expected, f"{WHO}: rows of {bits} bits")

"""A collection of tensor trains gives what TorchRec gives with the same tables, dense."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
torchrec = pytest.importorskip("torchrec")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weighted", (False, True))
def test_collection(weighted):
    from ttrec.torch.torchrec import TTEmbeddingBagCollection

    torch.manual_seed(0)
    pooling = torchrec.PoolingType
    second = pooling.SUM if weighted else pooling.MEAN
    tables = [
        torchrec.EmbeddingBagConfig(
            num_embeddings=n, embedding_dim=d, name=name, feature_names=features, pooling=p
        )
        for n, d, name, features, p in (
            (500, 16, "item", ["seen", "liked"], pooling.SUM),
            (300, 8, "word", ["seen", "title"], second),
        )
    ]
    ours = TTEmbeddingBagCollection(tables, weighted, rank=4, of_tables={"word": {"rank": 2}})
    theirs = torchrec.EmbeddingBagCollection(tables=tables, is_weighted=weighted)
    assert ours.embedding_bags["word"].ranks == (2, 2)
    with torch.no_grad():
        for name, bag in theirs.embedding_bags.items():
            bag.weight.copy_(ours.embedding_bags[name].to_dense())
    lengths = torch.tensor([2, 0, 3, 1, 1, 1, 0, 4, 2])
    features = torchrec.KeyedJaggedTensor(
        keys=["seen", "liked", "title"],
        values=torch.randint(0, 300, (int(lengths.sum()),)),
        lengths=lengths,
        weights=torch.rand(int(lengths.sum())) if weighted else None,
    )
    found, expected = ours(features), theirs(features)
    assert found.keys() == expected.keys()
    for key in expected.keys():  # noqa: SIM118
        assert torch.allclose(found[key], expected[key], rtol=1e-5, atol=1e-7)
    found.values().sum().backward()
    assert all(core.grad is not None for core in ours.parameters())

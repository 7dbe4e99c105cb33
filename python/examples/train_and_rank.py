"""From a plain PyTorch model to ranked candidates, step by step.

Two towers learn from clicks that a hidden model draws: users and items have tastes, and items with
neighbouring indices are alike, as where a catalogue is sorted by category. The tables are trained
dense, compressed, trained on for a little, compared, and exported; the blob then answers queries.
"""

from __future__ import annotations

import copy
import pathlib
import tempfile

import numpy as np
import torch
from torch import nn

import ttrec
import ttrec.torch

USERS, ITEMS, DIM = 2_000, 8_000, 32
torch.manual_seed(0)

# --- The clicks: for each sample a user, an item and whether it was clicked. ----------------------
tastes = torch.randn(USERS, 8)
categories = torch.randn(ITEMS // 100 + 1, 8)
goods = categories[torch.arange(ITEMS) // 100] + 0.3 * torch.randn(ITEMS, 8)


def clicks(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    users, items = torch.randint(USERS, (count,)), torch.randint(ITEMS, (count,))
    probability = torch.sigmoid((tastes[users] * goods[items]).sum(1))
    return users, items, torch.bernoulli(probability)


# --- The model, in plain PyTorch. -----------------------------------------------------------------
class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.EmbeddingBag(USERS, DIM, mode="sum")
        self.item = nn.EmbeddingBag(ITEMS, DIM, mode="sum")
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return (self.user(users[:, None]) * self.item(items[:, None])).sum(1)


def train(model: nn.Module, steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        users, items, clicked = clicks(4096)
        loss = nn.functional.binary_cross_entropy_with_logits(model(users, items), clicked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def auc(scores: np.ndarray, clicked: np.ndarray) -> float:
    """The share of pairs of a clicked and another sample that are in the right order."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    ones = int(clicked.sum())
    above = ranks[clicked > 0].sum() - ones * (ones + 1) / 2
    return above / (ones * (len(scores) - ones))


test = clicks(50_000)


@torch.no_grad()
def quality(model: nn.Module) -> float:
    return auc(model(*test[:2]).numpy(), test[2].numpy())


# --- Train it, then make its tables tensor trains and train on. -----------------------------------
model = TwoTowers()
train(model, 600, 0.02)
dense = copy.deepcopy(model)
print(f"dense:      AUC {quality(dense):.4f}")
ttrec.torch.compress(model, {"item": 24})
print(f"compressed: AUC {quality(model):.4f}")
train(model, 100, 0.002)
print(f"trained on: AUC {quality(model):.4f}")

# --- Export both, and compare. --------------------------------------------------------------------
with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory, "large.ttr")
    large = ttrec.torch.save_blob(dense, path)
    blob = ttrec.torch.save_blob(model, pathlib.Path(directory, "small.ttr"))
    error = ttrec.compare(blob, model, ttrec.torch.spec_of(model))["tables"][0]["relative_error"]
    print(f"{large.nbytes} bytes dense, {blob.nbytes} compressed; the blob's error is {error:.1e}")

    # --- Score and rank, without PyTorch from here on. --------------------------------------------
    users, items, clicked = (part.numpy() for part in test)
    scores = np.einsum("ij,ij->i", blob["user"].lookup(users), blob["item"].lookup(items))
    print(f"blob:       AUC {auc(scores, clicked):.4f}")
    seen = items[users == 17]
    best, scores = blob["item"].top_k(blob["user"].lookup(17), 5, exclude=seen)
    print(f"the best items for user 17: {best}, scores {scores.round(2)}")

"""An `EmbeddingBagCollection` of TorchRec whose tables are tensor trains. Imports torchrec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType

from .layers import TTEmbeddingBag

_MODES = {PoolingType.SUM: "sum", PoolingType.MEAN: "mean"}


class TTEmbeddingBagCollection(nn.Module):
    """`torchrec.EmbeddingBagCollection` over tensor trains.

    Args:
        tables, is_weighted, device: as those of `torchrec.EmbeddingBagCollection`.
        options: those of `TTEmbeddingBag` for all tables, such as `rank`.
        of_tables: more of them for some tables, by name.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        is_weighted: bool = False,
        device: Any = None,
        *,
        of_tables: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        given, names = of_tables or {}, [table.name for table in tables]
        if len(set(names)) != len(names):
            raise ValueError(f"tables {names}: expected each name once")
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise KeyError(f"of_tables has {unknown}: the tables are {names}")
        self.is_weighted, self._configs = is_weighted, list(tables)
        self.embedding_bags = nn.ModuleDict()
        for table in tables:
            if table.pooling not in _MODES:
                raise ValueError(f"{table.name}: pooling {table.pooling}: expected SUM or MEAN")
            self.embedding_bags[table.name] = TTEmbeddingBag(
                table.num_embeddings,
                table.embedding_dim,
                mode=_MODES[table.pooling],
                include_last_offset=True,
                device=device,
                **{**options, **given.get(table.name, {})},
            )
        # A feature of several tables has a vector of each.
        uses = Counter(feature for table in tables for feature in table.feature_names)
        self._keys = [
            feature if uses[feature] == 1 else f"{feature}@{table.name}"
            for table in tables
            for feature in table.feature_names
        ]
        self._dims = [table.embedding_dim for table in tables for _ in table.feature_names]

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return self._configs

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        by_name, pooled = features.to_dict(), []
        for table in self._configs:
            bag = self.embedding_bags[table.name]
            for name in table.feature_names:
                bags = by_name[name]
                weights = bags.weights() if self.is_weighted else None
                pooled.append(bag(bags.values(), bags.offsets(), weights))
        return KeyedTensor(self._keys, self._dims, torch.cat(pooled, 1))

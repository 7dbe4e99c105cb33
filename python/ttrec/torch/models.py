"""Whole models: compress their tables, and write them as blobs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .._ttrec import Blob
from ..conversion import Plan, convert
from .layers import (
    CodesEmbeddingBag,
    HashedEmbeddingBag,
    QuotientRemainderEmbeddingBag,
    TTEmbedding,
    TTEmbeddingBag,
    _TensorTrain,
)

#: What `compress` does with a table: a rank, or the options of `from_pretrained`.
Choice = int | Mapping[str, Any]


def compress(model: nn.Module, spec: Plan | int | Mapping[str, Choice]) -> nn.Module:
    """Replace dense tables of a model, in place, by the nearest tensor trains.

    Args:
        model: a module with `torch.nn.EmbeddingBag`s or `torch.nn.Embedding`s.
        spec: a rank for all of them; a dict that has the names of modules, and for each a rank or
            options such as `{"rank": 8, "column_factors": [2, 2, 4]}`; or a plan of `ttrec.plan`,
            whose tensor trains are made here (other choices are left to `save_blob`).

    Returns the model; a model that is a table itself is not changed, but returned as another one.
    """
    modules = {name: m for name, m in model.named_modules() if _is_dense(m)}
    if isinstance(spec, int):
        choices: Mapping[str, Choice] = dict.fromkeys(modules, spec)
    elif isinstance(spec, Plan):
        choices = dict(_planned(spec, modules))
    else:
        choices = spec
    unknown = sorted(set(choices) - set(modules))
    if unknown:
        raise KeyError(f"{unknown}: the model has the dense tables {sorted(modules)}")
    for name, choice in choices.items():
        compressed = _compressed(name, modules[name], choice)
        if not name:
            return compressed
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, compressed)
    return model


def _is_dense(module: nn.Module) -> bool:
    return type(module) in (nn.Embedding, nn.EmbeddingBag)


def _planned(plan: Plan, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Choice]]:
    for table in plan.tables:
        name = table["name"].removesuffix(".weight")
        if table["representation"] == "tt" and name in modules:
            yield (
                name,
                {
                    "rank": table["ranks"],
                    "row_factors": table["row_factors"],
                    "column_factors": table["column_factors"],
                },
            )


def _compressed(name: str, module: nn.Module, choice: Choice) -> _TensorTrain:
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise ValueError(f"{name}: a tensor train has neither max_norm nor scale_grad_by_freq")
    options = {"rank": choice} if isinstance(choice, int) else dict(choice)
    options["padding_idx"] = module.padding_idx
    weight = module.weight
    options |= {"device": weight.device, "dtype": weight.dtype}
    if isinstance(module, nn.Embedding):
        return TTEmbedding.from_pretrained(weight, **options)
    options |= {"mode": module.mode, "include_last_offset": module.include_last_offset}
    return TTEmbeddingBag.from_pretrained(weight, **options)


def spec_of(
    module: nn.Module,
    *,
    name: str = "table",
    dtype: str | None = None,
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The spec that `save_blob` converts with: one table for each module that is one.

    The tables have the names of the modules; a module that is a table itself is called `name`.
    `dtype` is the stored type of the tables, and `model` the `[model]` of the spec.
    """
    tables = []
    for path, part in module.named_modules():
        table = _table(f"{path}." if path else "", part)
        if table is None:
            continue
        table = {"name": path or name, **table, "dtype": dtype}
        if model is not None and getattr(part, "mode", None) in ("sum", "mean"):
            table["pooling"] = part.mode
        tables.append(table)
    if not tables:
        raise ValueError(f"{type(module).__name__} has no tables")
    return {"model": model, "table": tables}


def _table(prefix: str, part: nn.Module) -> dict[str, Any] | None:
    if isinstance(part, _TensorTrain):
        return {
            "prefix": prefix,
            "dialect": "fbtt",
            "num_embeddings": part.num_embeddings,
            "column_factors": list(part.column_factors),
        }
    if isinstance(part, QuotientRemainderEmbeddingBag):
        return {
            "prefix": prefix,
            "dialect": "dlrm",
            "num_embeddings": part.num_embeddings,
            "qr_operation": part.operation,
        }
    if isinstance(part, CodesEmbeddingBag):
        return {"prefix": prefix, "dialect": "codes", "combine": part.combine}
    if isinstance(part, HashedEmbeddingBag):
        return {
            "tensor": f"{prefix}weight",
            "index_map": "modulo",
            "num_embeddings": part.num_indices,
        }
    if isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
        if part.max_norm is not None:
            raise ValueError(f"{prefix}weight: a blob has no max_norm, which changes its rows")
        return {"tensor": f"{prefix}weight"}
    return None


def save_blob(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    name: str = "table",
    dtype: str | None = None,
    model: Mapping[str, Sequence[str] | str] | None = None,
) -> Blob:
    """Write a blob with all tables of a module, and with its layers if `model` names them.

    Args:
        name: of the table, if the module is one itself; other tables have their modules' names.
        dtype: the stored type: "f32", "f16", "bf16" or "i8"; that of the parameters by default.
        model: the layers around the tables, as `[model]` in a spec: `{"bottom": "bottom.",
            "top": "top.", "tables": ["user", "item"]}`, with the tables in the order in which the
            model takes them. The blob then has a ranker.
    """
    spec = spec_of(module, name=name, dtype=dtype, model=model)
    return convert(module, spec, path, progress=False)

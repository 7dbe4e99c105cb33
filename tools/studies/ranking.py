"""Recall and NDCG over all items, by numpy in f64: what `ttrec eval` prints for the test split.

    pip install numpy
    python tools/studies/ranking.py RUN/best.safetensors DATA.npz [EVAL.json]

RUN is the output of `ttrec train` on DATA.npz, of format `interactions` or `sessions`, with a top MLP of at most one layer.
EVAL.json is the output of `ttrec eval --json`: if a metric differs from it by more than 1e-6, the exit code is 1. Nothing here
uses ttrec: tables, MLPs and metrics are computed from the tensors of the checkpoint.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from safetensors_file import load

CUTOFFS = (10, 20)
BLOCK = 256


def read_checkpoint(path):
    """The tensors of a safetensors file, and the facts that `ttrec train` adds."""
    tensors, metadata = load(path)
    return tensors, json.loads(metadata["ttrec"])


def rows_of(tensors, spec, at):
    """All rows of table `at`."""
    prefix = f"emb_l.{at}."
    tensor = lambda name: tensors[prefix + name]
    indices = np.arange(spec["num_embeddings"])
    if spec.get("index_map") == "modulo":
        indices %= spec["num_rows"]
    if prefix + "weight" in tensors:
        return tensor("weight").astype(np.float64)[indices]
    if prefix + "weight_q" in tensors:
        quotients, remainders = tensor("weight_q").astype(np.float64), tensor("weight_r").astype(np.float64)
        of_quotient, of_remainder = quotients[indices // len(remainders)], remainders[indices % len(remainders)]
        return of_quotient + of_remainder if spec["qr_operation"] == "add" else of_quotient * of_remainder
    ranks = [1, *spec["ranks"], 1]
    rows = np.ones((len(indices), 1, 1))
    for k, (p, q) in enumerate(zip(spec["row_factors"], spec["column_factors"])):
        core = tensor(f"tt_cores.{k}").astype(np.float64).reshape(p, ranks[k], q * ranks[k + 1])
        digits = indices // tensor("L")[k] % p
        rows = np.einsum("icr,irs->ics", rows, core[digits]).reshape(len(indices), -1, ranks[k + 1])
    rows = rows[:, :, 0]
    if prefix + "hashtbl" in tensors:
        for row, place in zip(tensor("hashtbl"), tensor("cache_state")):
            if row >= 0 and place >= 0:
                rows[row] = tensor("cache_weight")[place]
    return rows


def layers(tensors, stack):
    """The layers of an MLP, in order: weights and biases."""
    names = sorted((name for name in tensors if name.startswith(stack + ".") and name.endswith(".weight")),
                   key=lambda name: int(name.split(".")[1]))
    return [(tensors[name].astype(np.float64), tensors[name[:-6] + "bias"].astype(np.float64)) for name in names]


def queries_of(tensors, contexts):
    """The vectors whose products with an item's row are its logit, but for a number that is the same for all items."""
    bottom, top = layers(tensors, "bot_l"), layers(tensors, "top_l")
    if len(top) > 1:
        sys.exit("the top MLP has more than one layer: the logit is no product of two vectors")
    if not bottom:
        return contexts * (top[0][0][0, 0] if top else 1.0)
    vector = np.ones(1)
    for weights, bias in bottom:
        vector = np.maximum(weights @ vector + bias, 0)
    # The vectors are the bottom's, the context's and the item's; their pairs are (1,0), (2,0) and (2,1).
    of_constant, of_context = top[0][0][0, len(vector) + 1 :]
    return of_constant * vector + of_context * contexts


def numbers(run, name):
    """The number of each id of a feature."""
    with open(run / "vocabulary.csv", newline="") as file:
        return {int(row["value"]): int(row["number"]) for row in csv.DictReader(file) if row["feature"] == name}


def random(seed, position):
    """The number at `position` of the SplitMix64 stream `seed`."""
    mask = (1 << 64) - 1
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def read_interactions(run, data, table, rows, history):
    """The context vector of each user of the test split, the items to find, and those to leave out. `rows` are those of the
    table of contexts."""
    number, items = numbers(run, table), numbers(run, "item")
    targets, known = {}, {}
    for of, part in ((known, "train"), (targets, "test")):
        for user, item in zip(data[part + "_user"].tolist(), data[part + "_item"].tolist()):
            of.setdefault(user, set()).add(item)
    if history:
        means = []
        for user in targets:
            recent = sorted(known.get(user, ()), key=lambda item: (random(user, item), item))[-history:]
            bag = [number[item] for item in recent]
            means.append(rows[bag].mean(0) if bag else np.zeros(rows.shape[1]))
        contexts = np.stack(means)
    else:
        contexts = rows[[number[user] for user in targets]]
    known = [known.get(user, ()) for user in targets]
    return contexts, *([{items[item] for item in of_user} for of_user in of] for of in (targets.values(), known))


def read_sessions(run, data, table, rows, history):
    """As `read_interactions`, for each session of the test split. Its target is never left out."""
    contexts, items = numbers(run, table), numbers(run, "item")
    offsets, before = data["test_offsets"].tolist(), data["test_items"].tolist()
    targets = [{items[target]} for target in data["test_target"].tolist()]
    sessions = [before[start:end] for start, end in zip(offsets, offsets[1:])]
    recent = [[contexts[item] for item in session[-history:]] for session in sessions]
    means = np.stack([rows[bag].mean(0) if bag else np.zeros(rows.shape[1]) for bag in recent])
    known = [{items[item] for item in session if item in items} - target for session, target in zip(sessions, targets)]
    return means, targets, known


def best_of(scores, k):
    """The places of the k largest scores, the first ones of equal scores first."""
    least = np.partition(scores, -k)[-k] if k < len(scores) else -np.inf
    places = np.flatnonzero(scores >= least)
    return places[np.lexsort((places, -scores[places]))][:k]


def main(checkpoint, data, evaluated=None):
    run, data = Path(checkpoint).parent, np.load(data)
    tensors, facts = read_checkpoint(checkpoint)
    rows = {spec["name"]: rows_of(tensors, spec, at) for at, spec in enumerate(facts["tables"])}
    # Of the context and of the item, which can be one.
    context, item = facts.get("features") or rows
    config = facts["config"]["data"]
    read = read_interactions if config["format"] == "interactions" else read_sessions
    contexts, targets, known = read(run, data, context, rows[context], config.get("history"))
    queries = queries_of(tensors, contexts)
    gains = 1 / np.log2(np.arange(2, max(CUTOFFS) + 2))
    sums = {f"{metric}@{k}": 0.0 for k in CUTOFFS for metric in ("recall", "ndcg")}
    for first in range(0, len(queries), BLOCK):
        scores = queries[first : first + BLOCK] @ rows[item].T
        for query, row in enumerate(scores, first):
            row[list(known[query])] = -np.inf
            best = best_of(row, max(CUTOFFS))
            hits = np.array([item in targets[query] and item not in known[query] for item in best])
            for k in CUTOFFS:
                sums[f"recall@{k}"] += hits[:k].sum() / len(targets[query])
                sums[f"ndcg@{k}"] += gains[: len(hits)][:k][hits[:k]].sum() / gains[: min(k, len(targets[query]))].sum()
    means = {name: float(total / len(queries)) for name, total in sums.items()}
    print(json.dumps({"queries": len(queries), **means}, indent=2))
    if evaluated:
        found = json.loads(Path(evaluated).read_text())
        differences = {name: abs(found[name] - mean) for name, mean in means.items()}
        print(f"{evaluated}: the largest difference is {max(differences.values()):.1e}")
        return int(found["queries"] != len(queries) or max(differences.values()) > 1e-6)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

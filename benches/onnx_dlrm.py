"""The same DLRM in onnxruntime: the onnxruntime figures of docs/benchmarks.md.

    pip install onnxruntime onnx numpy safetensors
    python benches/onnx_dlrm.py DIRECTORY

Writes a model of Criteo Kaggle's layers with dense f32 tables (tables of more than 100,000 rows are cut there) to
DIRECTORY/dlrm.safetensors, traffic of batches of 1 and 128 to DIRECTORY/batch-N.npz with one index per table (Zipf 1.05), and
onnxruntime's probabilities beside it. Prints its time per sample on one thread, the fastest of several passes; the answers are
compared with a plain numpy forward pass before anything is timed. What ttrec makes of the same files:

    ttrec convert DIRECTORY/dlrm.safetensors -o DIRECTORY/dlrm.ttr
    ttrec bench DIRECTORY/dlrm.ttr --batch DIRECTORY/batch-128.npz
    ttrec bench DIRECTORY/dlrm.ttr --batch DIRECTORY/batch-1.npz --samples 1
"""

import os
import sys
import time

import numpy as np
import onnx
import onnxruntime
from kaggle import DIM, ROWS, dense_features, draw, layers, table, write_samples
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

CUT, SAMPLES = 100_000, 128 * 64


def stack(model, name):
    at = 0
    while f"{name}.{at}.weight" in model:
        yield model[f"{name}.{at}.weight"], model[f"{name}.{at}.bias"]
        at += 2


def plain(model, dense, indices):
    """DLRM's forward pass in f64."""
    def run(name, x):
        all_layers = list(stack(model, name))
        for at, (weight, bias) in enumerate(all_layers):
            x = x @ weight.T.astype(np.float64) + bias
            if name == "bot_l" or at + 1 < len(all_layers):
                x = np.maximum(x, 0)
        return x

    x = run("bot_l", dense.astype(np.float64))
    vectors = np.stack([x] + [model[f"emb_l.{t}.weight"][indices[t]].astype(np.float64) for t in range(len(ROWS))], 1)
    products = vectors @ vectors.transpose(0, 2, 1)
    rows, columns = np.tril_indices(len(ROWS) + 1, -1)
    z = run("top_l", np.concatenate([x, products[:, rows, columns]], 1))
    return 1 / (1 + np.exp(-z[:, 0]))


def graph(model):
    """The model as torch.onnx would export it, with as few nodes as it takes."""
    nodes, weights, inputs = [], [], [helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["n", 13])]

    def constant(name, value):
        weights.append(numpy_helper.from_array(value, name))
        return name

    def node(kind, ins, out, **attributes):
        nodes.append(helper.make_node(kind, ins, [out], **attributes))
        return out

    def mlp(name, x):
        all_layers = list(stack(model, name))
        for at, (weight, bias) in enumerate(all_layers):
            pair = [constant(f"{name}.{at}.w", weight), constant(f"{name}.{at}.b", bias)]
            x = node("Gemm", [x, *pair], f"{name}.{at}", transB=1)
            if name == "bot_l" or at + 1 < len(all_layers):
                x = node("Relu", [x], f"{name}.{at}.relu")
        return x

    x = mlp("bot_l", "dense")
    axis = constant("one", np.array([1], np.int64))
    vectors = [node("Unsqueeze", [x, axis], "x1")]
    for t in range(len(ROWS)):
        inputs.append(helper.make_tensor_value_info(f"i{t}", TensorProto.INT64, ["n"]))
        row = node("Gather", [constant(f"e{t}", model[f"emb_l.{t}.weight"]), f"i{t}"], f"row{t}")
        vectors.append(node("Unsqueeze", [row, axis], f"v{t}"))
    features = node("Concat", vectors, "features", axis=1)
    columns = node("Transpose", [features], "columns", perm=[0, 2, 1])
    products = node("MatMul", [features, columns], "products")
    count = len(ROWS) + 1
    flat = node("Reshape", [products, constant("shape", np.array([-1, count * count], np.int64))], "flat")
    rows, cols = np.tril_indices(count, -1)
    pairs = node("Gather", [flat, constant("pairs", (rows * count + cols).astype(np.int64))], "picked", axis=1)
    z = mlp("top_l", node("Concat", [x, pairs], "z", axis=1))
    node("Sigmoid", [z], "probability")
    outputs = [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1])]
    made = helper.make_model(helper.make_graph(nodes, "dlrm", inputs, outputs, weights), opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.checker.check_model(made)
    return made.SerializeToString()


def main():
    directory = sys.argv[1]
    os.makedirs(directory, exist_ok=True)
    rng = np.random.default_rng(7)
    model = layers(rng)
    for t, rows in enumerate(ROWS):
        model[f"emb_l.{t}.weight"] = table(rng, min(rows, CUT))
    save_file(model, os.path.join(directory, "dlrm.safetensors"))
    dense = dense_features(rng, SAMPLES)
    indices = np.stack([draw(rng, min(rows, CUT), SAMPLES, True) for rows in ROWS])

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph(model), options, ["CPUExecutionProvider"])
    for size in (1, 128):
        starts = range(0, SAMPLES if size > 1 else 2048, size)
        feeds = [
            {"dense": dense[s : s + size]} | {f"i{t}": indices[t, s : s + size] for t in range(len(ROWS))} for s in starts
        ]
        answers = np.concatenate([session.run(None, feed)[0][:, 0] for feed in feeds])
        wanted = plain(model, dense[: len(answers)], indices[:, : len(answers)])
        worst = np.abs(answers - wanted).max()
        assert worst < 1e-5 and len(answers) == len(feeds) * size, worst
        fastest = min(timed(session, feeds) for _ in range(10))
        print(f"onnxruntime {onnxruntime.__version__}, batch {size}: {fastest / len(answers) * 1e6:.2f} us per sample")
        write_samples(os.path.join(directory, f"batch-{size}.npz"), dense[: len(answers)], indices[:, : len(answers)], prob=answers)


def timed(session, feeds):
    start = time.perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

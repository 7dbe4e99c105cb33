"""Indexes of codes as FAISS writes them, and the first rows as it decodes them: faiss-cpu 1.15."""

import faiss
import numpy

ROWS, COLUMNS, DECODED = 300, 16, 40

faiss.omp_set_num_threads(1)
random = numpy.random.default_rng(1)
low_rank = random.standard_normal((ROWS, 4)) @ random.standard_normal((4, COLUMNS))
vectors = (low_rank + 0.1 * random.standard_normal((ROWS, COLUMNS))).astype("f4")

indexes = {
    "faiss_pq": faiss.IndexPQ(COLUMNS, 4, 8),
    "faiss_pq3": faiss.IndexPQ(COLUMNS, 4, 3),
    # Rotated, and cut to 8 columns.
    "faiss_opq": faiss.index_factory(COLUMNS, "OPQ4_8,PQ4x5"),
    "faiss_residual": faiss.IndexResidualQuantizer(COLUMNS, 3, 4),
}
decoded = []
for name, index in indexes.items():
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, f"{name}.faiss")
    decoded.append([index.reconstruct(row) for row in range(DECODED)])
numpy.save("faiss.expected.npy", numpy.array(decoded))

"""implicit: the factors that `save` writes as .npz, and the scores of `recommend`."""

from checks import all_rows, convert, equal, np, of, require, scores

implicit, sparse = require("implicit", "scipy.sparse")
WHO = of("implicit")
USERS, ITEMS = 60, 45
ratings = sparse.random(USERS, ITEMS, density=0.2, format="csr", random_state=4, dtype="float32")

SPEC = """
[model]
top = []
tables = ["user_factors", "item_factors"]
pooling = "sum"
interaction = "dot"
"""
for name, model in [
    ("AlternatingLeastSquares", implicit.als.AlternatingLeastSquares(8, iterations=3)),
    ("BayesianPersonalizedRanking", implicit.bpr.BayesianPersonalizedRanking(8, iterations=3)),
    ("LogisticMatrixFactorization", implicit.lmf.LogisticMatrixFactorization(8, iterations=3)),
]:
    model.fit(ratings, show_progress=False)
    model.save("model.npz")
    blob = convert("model.npz", SPEC)
    for table, factors in [("user_factors", model.user_factors),
                           ("item_factors", model.item_factors)]:
        all_rows(blob, table, factors, f"{WHO}: {name}: {table}")
    user = 7
    items, expected = model.recommend(user, None, N=10, filter_already_liked_items=False)
    samples = {"indices_0": np.full(10, user), "offsets_0": np.arange(10),
               "indices_1": items, "offsets_1": np.arange(10)}
    scores(blob, samples, expected, f"{WHO}: {name}: scores of recommend", "--logits")

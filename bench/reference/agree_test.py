"""The comparison of losses and metrics must refuse what is far, no number, or nothing."""
from data import agree

assert agree({"losses": [1e-6, 9e-5]})
assert not agree({"losses": [1e-6, 2e-4]})
assert not agree({"losses": [float("nan"), 0]})
assert not agree({"losses": [0, float("nan")]})
assert not agree({"losses": []})
assert not agree({"pretraining": [0], "fine_tuning": [1]})
assert agree({"losses": [0]}, {"recall@5": 0.9, "ndcg@5": 0})
assert not agree({"losses": [0]}, {"recall@5": 0.9, "ndcg@5": 1.1})
assert not agree({"losses": [0]}, {"recall@5": float("nan")})
print("9 passed, 0 failed")

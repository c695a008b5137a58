"""The comparison of losses must refuse what is far, no number, or nothing."""
from data import agree

assert agree({"losses": [1e-6, 9e-5]})
assert not agree({"losses": [1e-6, 2e-4]})
assert not agree({"losses": [float("nan"), 0]})
assert not agree({"losses": [0, float("nan")]})
assert not agree({"losses": []})
assert not agree({"pretraining": [0], "fine_tuning": [1]})
print("6 passed, 0 failed")

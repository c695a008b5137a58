#pragma once

#include <vector>

#include "tessera/base/json.h"

namespace tessera {

/// What the released log of KDSR reports of a test curve (kdsr sections 6 and 8), from the lines of
/// test_curve.jsonl: the best epoch of each of recall, mrr and ndcg at 5 and 20, up to the epoch
/// after which that run would have stopped: 6 in a row in which neither they nor the one before
/// improved any of the six. Under "best" a metric has epoch, value and, for ndcg, as_logged: the
/// log divides by the ideal of K hits. "stop_epoch" is null where the rule never held. A diagnostic
/// chosen on test, beside the curve and nowhere else.
Json released_summary(const std::vector<Json>& lines);

}  // namespace tessera

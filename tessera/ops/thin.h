#pragma once

#include "tessera/base/random.h"
#include "tessera/ops/graph.h"

namespace tessera {

/// floor(E (1 - dropout)) edges of `graph`, drawn without replacement with probability proportional
/// to 1 / sqrt(d_u d_i) and normalised by the degrees that are left (FREEDOM, baselines section
/// 11); the graph itself without dropout. The draws belong to (`random`, `step`, edge): equal for
/// any number of threads. dropout in [0, 1]
BipartiteGraph thinned(const BipartiteGraph& graph, double dropout, const Random& random,
                       int64_t step);

}  // namespace tessera

#include "tessera/model/stored_graph.h"

#include <torch/types.h>
#include <torch/utils.h>

#include "tessera/base/error.h"

namespace tessera {

const ItemGraph& StoredGraph::get() const {
  const auto version = [&] {
    return rows_.offsets._version() + rows_.items._version() + rows_.weights._version();
  };
  if (graph_.defined() && version() == version_) return graph_;
  if (rows_.offsets.defined() || rows_.items.defined() || rows_.weights.defined()) {
    check();
  } else {
    const torch::NoGradGuard no_grad;
    rows_ = fit_();
  }
  graph_ = ItemGraph(rows_);
  version_ = version();
  return graph_;
}

/// What a damaged file may hold must not be read as places in memory.
void StoredGraph::check() const {
  const auto& [offsets, items, weights] = rows_;
  const auto refuse = [&](const std::string& why) {
    throw data_error("the stored graph '{}' is damaged: {}", name_, why);
  };
  const auto is = [](const torch::Tensor& x, torch::ScalarType type) {
    return x.defined() && x.dim() == 1 && x.scalar_type() == type;
  };
  if (!is(offsets, torch::kInt64) || !is(items, torch::kInt32) || !is(weights, torch::kFloat32)) {
    refuse("wanted int64 offsets, int32 items and float32 weights");
  }
  if (offsets.size(0) != n_items_ + 1 || items.size(0) != weights.size(0)) {
    refuse(fmt::format("{} rows and {} weights for {} items of {}", offsets.size(0) - 1,
                       weights.size(0), n_items_, items.size(0)));
  }
  const bool rising = offsets[0].item<int64_t>() == 0 &&
                      offsets[n_items_].item<int64_t>() == items.size(0) &&
                      (offsets.diff() >= 0).all().item<bool>();
  if (!rising) refuse("its rows do not follow one another");
  if (!((items >= 0) & (items < n_items_)).all().item<bool>()) {
    refuse(fmt::format("a neighbour is none of {} items", n_items_));
  }
  if (!weights.isfinite().all().item<bool>()) refuse("a weight is not a number");
}

void StoredGraph::state(State& state) {
  state.add(name_ + ".offsets", rows_.offsets, Role::scoring);
  state.add(name_ + ".items", rows_.items, Role::scoring);
  state.add(name_ + ".weights", rows_.weights, Role::scoring);
}

}  // namespace tessera

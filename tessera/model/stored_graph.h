#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "tessera/model/state.h"
#include "tessera/ops/item_graph.h"

namespace tessera {

/// A graph of the items that is fitted to their features once, before the first step, and kept with
/// the weights: a loaded model takes the stored one and never fits. get() is for one thread: models
/// call it while they train or make a scorer.
class StoredGraph {
 public:
  /// Its state is "<name>.offsets", "<name>.items" and "<name>.weights". `fit` must not depend on
  /// what is trained.
  StoredGraph(std::string name, int64_t n_items, std::function<NeighbourGraph()> fit)
      : name_(std::move(name)), n_items_(n_items), fit_(std::move(fit)) {}

  /// Fits it where neither a call nor a load has made it. Exit 3 where what was loaded is no graph
  /// of these items.
  const ItemGraph& get() const;
  void state(State& state);

 private:
  void check() const;

  std::string name_;
  int64_t n_items_;
  std::function<NeighbourGraph()> fit_;
  mutable NeighbourGraph rows_;
  mutable ItemGraph graph_;      // of rows_, once they are checked
  mutable int64_t version_ = 0;  // of rows_ then: a load writes into them
};

}  // namespace tessera

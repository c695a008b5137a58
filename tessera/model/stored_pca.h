#pragma once

#include <torch/types.h>

#include <string>

#include "tessera/data/feature.h"
#include "tessera/model/state.h"
#include "tessera/ops/pca.h"

namespace tessera {

/// A PCA that is fitted once, where a model is trained, and then goes wherever its weights go: no
/// other machine's eigenvectors take its place.
class StoredPca {
 public:
  /// NAME.mean, NAME.axes and NAME.scale, read when ranking; a file without them leaves it
  /// unfitted.
  void state(State& state, const std::string& name);
  /// What a file brought, else fit_pca() of the rows that are there, once. Exit 3 where the file's
  /// is not of n_axes(k, width, rows) axes.
  Pca of(const Feature& feature, int64_t k, const Random& random);

 private:
  torch::Tensor mean_, axes_, scale_;  // float64 [width], [n, width], [1]
};

}  // namespace tessera

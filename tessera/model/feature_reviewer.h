#pragma once

#include "tessera/nn/quality.h"

namespace tessera {

/// A model that reviews the features of items (R2MR); found by dynamic_cast.
class FeatureReviewer {
 public:
  virtual ~FeatureReviewer() = default;
  /// What it finds in the rows as they stand; exit 2 before it has reviewed any.
  virtual Quality quality() = 0;
};

}  // namespace tessera

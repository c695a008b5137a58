#pragma once

#include <vector>

#include "tessera/model/model.h"

namespace tessera {

/// A trained model that maps the raw rows of other items, for example new ones, to what it exports,
/// without training; found by dynamic_cast.
class RowEncoder {
 public:
  virtual ~RowEncoder() = default;
  /// The model as it stands after its training; cards say whether interactions changed it.
  /// `features` hold rows of `n_items` items and go by name; a modality of the model that is not
  /// among them is missing everywhere. Exit 3 where none is there or a width differs.
  virtual std::vector<NamedRows> encode(const std::vector<Feature>& features, int64_t n_items) = 0;
};

/// A FeatureSupplier whose features may need the whole training and not only fit().
class TrainedSupplier {
 public:
  virtual ~TrainedSupplier() = default;
  virtual bool needs_training() const = 0;
};

}  // namespace tessera

#pragma once

#include <optional>

#include "tessera/model/model.h"
#include "tessera/ops/parts.h"

namespace tessera {

/// A model whose scores are attention over the parts of items, so that lists need not compute those
/// that cannot enter them; found by dynamic_cast.
class PartRanked {
 public:
  virtual ~PartRanked() = default;
  /// What score() gives to part_scores() for these queries; nothing where it answers one of them in
  /// another way.
  virtual std::optional<PartFactors> part_factors(const Queries& queries) = 0;
};

}  // namespace tessera

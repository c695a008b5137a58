#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/json.h"

namespace tessera {

/// What a reviewer of item features found and what became of it (r2mr section 8): the numbers
/// behind quality.tsv and the report.
struct Quality {
  struct Modality {
    std::string name;
    double eta = 0;
    bool consensus = true;      ///< takes part in rewriting
    torch::Tensor present;      ///< bool [n_items], as given
    torch::Tensor exists;       ///< bool [n_items], as given or filled
    torch::Tensor scores;       ///< [n_items]
    torch::Tensor null_scores;  ///< [n_items, n_draws], with the rows permuted
    torch::Tensor has_null;     ///< bool [n_items]; a row filled in since the last review has none
    torch::Tensor high;         ///< bool [n_items]
    torch::Tensor round;        ///< int64 [n_items], 0: never rewritten
    torch::Tensor before, now;  ///< rows [n_items, d]
  };
  struct Rewrite {
    int64_t item, modality, round, source;
    double before, after;  ///< scores; before: NaN where the row was missing
  };
  uint64_t seed = 0;
  std::vector<Modality> modalities;
  torch::Tensor scored;   ///< bool [n_items]
  torch::Tensor area;     ///< int64 [n_items], Area of nn/review.h
  torch::Tensor n_users;  ///< int64 [n_items]
  std::vector<Rewrite> rewrites;
  Json rounds = Json::array();  ///< one object a round: its numbers
};

}  // namespace tessera

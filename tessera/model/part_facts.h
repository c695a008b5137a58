#pragma once

#include <string>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/base/random.h"
#include "tessera/data/dataset.h"
#include "tessera/ops/parts.h"

namespace tessera {

/// A trained model of item parts, for what there is to tell of it (pamd section 10): numbers only.
struct ItemParts {
  std::vector<std::string> modalities;
  std::vector<std::string> names;      ///< of the parts: one in common a modality, then the rest
  PartFactors factors;                 ///< of all users and items
  std::vector<torch::Tensor> present;  ///< by modality, bool [n_items]
  int64_t n_modalities() const { return static_cast<int64_t>(modalities.size()); }
  int64_t n_parts() const { return static_cast<int64_t>(names.size()); }
  bool divided() const { return names.size() > modalities.size(); }
};

/// Attention to common and specific parts over hits, lists and all candidates: every pair of a user
/// and an item without a train row; of users drawn at random where that is too much. {list,
/// n_users, n_known, names, sets: [{name, n, common, uniform, common_wins, bins, parts,
/// modalities: [{name, share, uniform}]}]}; a set without pairs is left out.
Json attention_facts(const ItemParts& parts, const TrainView& data, const Interactions& held,
                     const Random& random);

/// A joint PCA of all parts of up to 500 items that have every modality: {items, explained, parts:
/// [{name, points: [[x, y]]}], n_modalities}; without items where these are too few.
Json picture_facts(const ItemParts& parts, const TrainView& data, const Random& random);

/// The five nearest by each kind of part to items drawn at random; only items that have a modality
/// are compared by it. {kinds, items: [{item, lists: [[id]]}]}
Json neighbour_facts(const ItemParts& parts, const TrainView& data, const Random& random);

/// [{modality, overlap}] of common and specific parts, of modalities that 8 items have.
Json overlap_facts(const ItemParts& parts);

}  // namespace tessera

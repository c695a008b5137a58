#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/data/dataset.h"

namespace tessera {

/// Items that come after training: ids, and the rows of their features, numbered from 0.
struct NewItems {
  Vocabulary ids;
  std::vector<std::string> titles;  ///< parallel to ids, or empty
  std::vector<Feature> features;
};

/// The items that are answered from: those of the training, then those added. Immutable.
class Catalogue {
 public:
  explicit Catalogue(std::shared_ptr<const Dataset> data);
  /// This one and `items` behind it; exit 2 for an id that is there already.
  std::shared_ptr<const Catalogue> with(const NewItems& items) const;

  int64_t size() const { return data_->n_items + added_.size(); }
  int64_t find(std::string_view id) const;  ///< -1 for none
  std::string_view id(int64_t item) const;
  bool has_titles() const { return titles_ != nullptr || !added_titles_.empty(); }
  std::string_view title(int64_t item) const;  ///< empty where it has none
  /// bool [size]: never answered.
  const torch::Tensor& hidden() const { return hidden_; }
  /// "; did you mean 'x'?" or nothing.
  std::string nearest(const std::string& id) const;

 private:
  std::shared_ptr<const Dataset> data_;
  const std::vector<std::string>* titles_ = nullptr;  // of data_
  Vocabulary added_;
  std::vector<std::string> added_titles_;
  torch::Tensor hidden_;
};

}  // namespace tessera

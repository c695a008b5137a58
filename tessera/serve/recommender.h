#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/log.h"
#include "tessera/model/bundle.h"

namespace tessera {

/// Whom to answer, and from what.
struct Ask {
  std::vector<std::string> users = {};  ///< raw ids
  std::vector<std::string> history =
      {};  ///< item ids, oldest first; with `users`, of that one user
  int64_t n = 10;
  bool filter_seen = true;  ///< leave out what the user has seen, the history included
  std::vector<std::string> exclude = {};  ///< never answered; ids that are no items are counted
  std::vector<std::string> only = {};     ///< where not empty, nothing else is answered
};

struct ScoredItem {
  int64_t item = 0;
  double score = 0;
};

/// A list, best first; shorter than asked where candidates ran out.
struct Answer {
  std::string user;  ///< empty for a bare history
  std::string via;   ///< user, history, item mean or popular: what the scores rest on
  std::vector<ScoredItem> items;
};

/// Answers from a bundle. Hidden items are never answered.
class Recommender {
 public:
  explicit Recommender(Bundle bundle, Log log = {});

  /// One list a user, in the order asked, or one for the bare history. Exit 2 with the nearest id
  /// for an unknown user or item, and for n outside 1..n_items.
  std::vector<Answer> recommend(const Ask& ask);

  /// The items nearest to `item` (itself left out): by "cf", cosine of the collaborative vectors or
  /// the model's own similarity; by a modality, cosine of the feature rows. Exit 2 where the
  /// bundle cannot tell.
  std::vector<ScoredItem> similar(const std::string& item, int64_t n, const std::string& by = "cf");

  const Bundle& bundle() const { return bundle_; }
  std::string_view item_id(int64_t item) const { return data().item_ids[item]; }
  std::string title(int64_t item) const { return data().item_columns.title(item); }

 private:
  struct Query;
  const Dataset& data() const { return *bundle_.data; }
  void check_n(int64_t n) const;
  int64_t item_index(const std::string& id, const char* what) const;
  torch::Tensor barred(const Ask& ask) const;
  void answer(std::vector<Query>& queries, const torch::Tensor& barred, int64_t n);
  std::vector<float> collaborative(int64_t item);
  std::vector<float> by_feature(const Feature& feature, int64_t item) const;

  Bundle bundle_;
  Log log_;
  bool is_popularity_ = false;
  FactorModel* factor_ = nullptr;  // bundle_.model where it is one
  Abilities abilities_;
  Interactions seen_;              // sorted_distinct(known)
  torch::Tensor hidden_;           // bool [n_items]
  std::vector<float> popularity_;  // train rows by item
};

}  // namespace tessera

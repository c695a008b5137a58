#pragma once

#include <functional>
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
  bool all_users = false;                 ///< every user of the bundle, `users` empty
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

/// Whose neighbours, which kind, how many.
struct AskSimilar {
  std::vector<std::string> items = {};  ///< raw ids
  bool all_items = false;               ///< every item that is not hidden, `items` empty
  int64_t n = 10;
  std::string by = "cf";  ///< or a modality
  std::vector<std::string> exclude = {}, only = {};
};

/// An item's neighbours, best first.
struct Neighbours {
  int64_t item = 0;
  std::vector<ScoredItem> items;
};

/// Answers from a bundle. Hidden items are never answered.
class Recommender {
 public:
  explicit Recommender(Bundle bundle, Log log = {});

  /// One list a user, in the order asked, or one for the bare history. Exit 2 with the nearest id
  /// for an unknown user or item, and for n outside 1..n_items.
  std::vector<Answer> recommend(const Ask& ask);
  /// The same, each list handed over in that order and then dropped: memory does not grow with
  /// their number.
  void recommend(const Ask& ask, const std::function<void(Answer&&)>& take);

  /// The items nearest to `item` (itself left out): by "cf", cosine of the collaborative vectors or
  /// the model's own similarity; by a modality, cosine of the feature rows. Exit 2 where the
  /// bundle cannot tell.
  std::vector<ScoredItem> similar(const std::string& item, int64_t n, const std::string& by = "cf");
  /// The same for several, handed over as made; of `all_items` those without a vector or feature
  /// are left out, and counted in the return value.
  int64_t similar(const AskSimilar& ask, const std::function<void(Neighbours&&)>& take);

  const Bundle& bundle() const { return bundle_; }
  std::string_view item_id(int64_t item) const { return data().item_ids[item]; }
  std::string title(int64_t item) const { return data().item_columns.title(item); }

 private:
  struct Query;
  const Dataset& data() const { return *bundle_.data; }
  void check_n(int64_t n) const;
  int64_t item_index(const std::string& id, const char* what) const;
  torch::Tensor barred(const std::vector<std::string>& only,
                       const std::vector<std::string>& exclude) const;
  void answer(std::vector<Query>& queries, const torch::Tensor& barred, int64_t n);
  void check_can_compare(const AskSimilar& ask, const Feature* feature,
                         const std::vector<int64_t>& items);
  std::vector<Neighbours> by_vectors(const std::vector<int64_t>& items, const torch::Tensor& barred,
                                     int64_t n);
  std::vector<Neighbours> by_histories(const std::vector<int64_t>& items,
                                       const torch::Tensor& barred, int64_t n);
  std::vector<Neighbours> by_feature(const Feature& feature, const std::vector<int64_t>& items,
                                     const torch::Tensor& barred, int64_t n) const;

  Bundle bundle_;
  Log log_;
  bool is_popularity_ = false;
  FactorModel* factor_ = nullptr;  // bundle_.model where it is one
  Abilities abilities_;
  Interactions seen_;                   // sorted_distinct(known)
  torch::Tensor hidden_;                // bool [n_items]
  std::vector<int64_t> popularity_;     // train rows by item
  std::vector<int32_t> by_popularity_;  // items, most rows first, ties to the lower index
  torch::Tensor unit_items_;            // item vectors at length 1, made when first asked for
};

}  // namespace tessera

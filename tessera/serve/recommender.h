#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/log.h"
#include "tessera/serve/version.h"

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
  Via via = Via::popular;
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

/// Answers from a snapshot that is exchanged whole: many threads may ask, and each call answers
/// from the one that was there when it began. Hidden items are never answered.
class Recommender {
 public:
  explicit Recommender(std::shared_ptr<const Version> version, Log log = {});
  explicit Recommender(Bundle bundle, Log log = {})
      : Recommender(make_version(std::move(bundle)), std::move(log)) {}

  std::shared_ptr<const Version> version() const;
  void exchange(std::shared_ptr<const Version> version);
  /// Items that the next calls answer, too; exit 2 where the model cannot take them.
  void add_items(const NewItems& items);

  /// One list a user, in the order asked, or one for the bare history. Exit 2 with the nearest id
  /// for an unknown user or item, and for n outside 1..n_items.
  std::vector<Answer> recommend(const Ask& ask) const;
  /// The same, each list handed over in that order and then dropped: memory does not grow with
  /// their number.
  void recommend(const Ask& ask, const std::function<void(Answer&&)>& take) const;

  /// The items nearest to `item` (itself left out): by "cf", cosine of the collaborative vectors or
  /// the model's own similarity; by a modality, cosine of the feature rows. Exit 2 where the
  /// bundle cannot tell.
  std::vector<ScoredItem> similar(const std::string& item, int64_t n,
                                  const std::string& by = "cf") const;
  /// The same for several, handed over as made; of `all_items` those without a vector or feature
  /// are left out, and counted in the return value.
  int64_t similar(const AskSimilar& ask, const std::function<void(Neighbours&&)>& take) const;

 private:
  mutable std::mutex mutex_;  // of now_
  std::shared_ptr<const Version> now_;
  std::mutex adding_;  // none of two additions is lost
  const Log log_;
};

}  // namespace tessera

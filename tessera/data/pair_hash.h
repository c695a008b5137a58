#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/data/events.h"
#include "tessera/data/vocabulary.h"

namespace tessera {

/// SHA-256 over the lines "user<TAB>item" or "user<TAB>item<TAB>split" (each ended by a line feed)
/// of raw ids, sorted bytewise. Keeps 8 bytes a row.
class PairHash {
 public:
  PairHash(const Vocabulary& users, const Vocabulary& items, bool with_split);
  void reserve(int64_t n_rows) { keys_.reserve(n_rows); }
  void add(int32_t user, int32_t item, Split split = Split::train);
  std::string hex();  ///< ends the hash

 private:
  const Vocabulary& users_;
  const Vocabulary& items_;
  bool with_split_;
  std::vector<int32_t> users_by_rank_, items_by_rank_, user_rank_, item_rank_;
  int item_bits_ = 0, split_bits_ = 0;
  std::vector<uint64_t> keys_;  // rank of user, rank of item, rank of split, high to low
};

}  // namespace tessera

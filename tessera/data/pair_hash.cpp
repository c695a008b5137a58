#include "tessera/data/pair_hash.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "tessera/base/files.h"

namespace tessera {
namespace {

// The labels in bytewise order of their names; the rank of a label is its place here.
constexpr std::array<Split, 6> kByName = {Split::history, Split::none,  Split::seen,
                                          Split::test,    Split::train, Split::valid};

/// Order of two ids as parts of a line: with a tab behind each unless they end the line.
bool before(std::string_view a, std::string_view b, bool tab_follows) {
  const size_t n = std::min(a.size(), b.size());
  const int order = n == 0 ? 0 : a.substr(0, n).compare(b.substr(0, n));
  if (order != 0) return order < 0;
  if (a.size() == b.size() || !tab_follows) return a.size() < b.size();
  return a.size() < b.size() ? '\t' < static_cast<unsigned char>(b[n])
                             : static_cast<unsigned char>(a[n]) < '\t';
}

void rank(const Vocabulary& ids, bool tab_follows, std::vector<int32_t>& by_rank,
          std::vector<int32_t>& rank_of) {
  by_rank.resize(ids.size());
  std::iota(by_rank.begin(), by_rank.end(), 0);
  std::sort(by_rank.begin(), by_rank.end(),
            [&](int32_t a, int32_t b) { return before(ids[a], ids[b], tab_follows); });
  rank_of.resize(ids.size());
  for (size_t r = 0; r < by_rank.size(); ++r) rank_of[by_rank[r]] = static_cast<int32_t>(r);
}

}  // namespace

PairHash::PairHash(const Vocabulary& users, const Vocabulary& items, bool with_split)
    : users_(users), items_(items), with_split_(with_split) {
  rank(users, true, users_by_rank_, user_rank_);
  rank(items, with_split, items_by_rank_, item_rank_);
  item_bits_ = std::bit_width(static_cast<uint64_t>(items.size()));
  split_bits_ = with_split ? 3 : 0;
}

void PairHash::add(int32_t user, int32_t item, Split split) {
  uint64_t key = static_cast<uint64_t>(user_rank_[user]) << item_bits_ |
                 static_cast<uint64_t>(item_rank_[item]);
  if (with_split_) {
    const auto place = std::find(kByName.begin(), kByName.end(), split) - kByName.begin();
    key = key << split_bits_ | static_cast<uint64_t>(place);
  }
  keys_.push_back(key);
}

std::string PairHash::hex() {
  std::sort(keys_.begin(), keys_.end());
  Sha256 hash;
  std::string block;
  for (const uint64_t key : keys_) {
    const uint64_t pair = key >> split_bits_;
    block += users_[users_by_rank_[pair >> item_bits_]];
    block += '\t';
    block += items_[items_by_rank_[pair & ((uint64_t{1} << item_bits_) - 1)]];
    if (with_split_) {
      block += '\t';
      block += split_name(kByName[key & 7]);
    }
    block += '\n';
    if (block.size() > 1 << 16) {
      hash.add(block);
      block.clear();
    }
  }
  hash.add(block);
  return hash.hex();
}

}  // namespace tessera

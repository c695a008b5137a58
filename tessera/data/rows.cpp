#include "tessera/data/rows.h"

#include <algorithm>
#include <numeric>

#include "tessera/base/files.h"

namespace tessera {
namespace {

/// Order of two ids as parts of a line, a tab behind each unless they end the line.
bool before(std::string_view a, std::string_view b, bool tab_follows) {
  const size_t n = std::min(a.size(), b.size());
  const int order = a.substr(0, n).compare(b.substr(0, n));
  if (order != 0) return order < 0;
  if (a.size() == b.size() || !tab_follows) return a.size() < b.size();
  return a.size() < b.size() ? '\t' < static_cast<unsigned char>(b[n])
                             : static_cast<unsigned char>(a[n]) < '\t';
}

std::vector<int32_t> sorted_ids(const Vocabulary& ids, bool tab_follows) {
  std::vector<int32_t> sorted(ids.size());
  std::iota(sorted.begin(), sorted.end(), 0);
  std::sort(sorted.begin(), sorted.end(),
            [&](int32_t a, int32_t b) { return before(ids[a], ids[b], tab_follows); });
  return sorted;
}

}  // namespace

RowsByUser rows_by_user(int64_t n_users, std::span<const int32_t> user,
                        std::span<const int64_t> time) {
  RowsByUser out;
  out.offsets.assign(n_users + 1, 0);
  for (const int32_t u : user) ++out.offsets[u + 1];
  for (int64_t u = 0; u < n_users; ++u) out.offsets[u + 1] += out.offsets[u];
  out.rows.resize(user.size());
  // Filling from the back turns the ends into the starts, so that no second table is needed.
  for (size_t row = user.size(); row-- > 0;) {
    out.rows[--out.offsets[user[row] + 1]] = static_cast<int32_t>(row);
  }
  std::rotate(out.offsets.begin(), out.offsets.begin() + 1, out.offsets.end());
  out.offsets.back() = static_cast<int64_t>(user.size());
  if (time.empty()) return out;
  for (int64_t u = 0; u < n_users; ++u) {
    const auto begin = out.rows.begin() + out.offsets[u];
    const auto end = out.rows.begin() + out.offsets[u + 1];
    const auto earlier = [&](int32_t a, int32_t b) {
      return time[a] != time[b] ? time[a] < time[b] : a < b;
    };
    if (!std::is_sorted(begin, end, earlier)) std::sort(begin, end, earlier);
  }
  return out;
}

std::string pairs_sha256(const Vocabulary& users, const Vocabulary& items, bool with_split,
                         const std::function<void(int32_t user, UserPairs&)>& pairs_of) {
  const std::vector<int32_t> item_order = sorted_ids(items, with_split);
  std::vector<int32_t> item_rank(item_order.size());
  for (size_t r = 0; r < item_order.size(); ++r) item_rank[item_order[r]] = static_cast<int32_t>(r);
  Sha256 hash;
  std::string block;
  UserPairs pairs;
  for (const int32_t user : sorted_ids(users, true)) {
    pairs.clear();
    pairs_of(user, pairs);
    std::sort(pairs.begin(), pairs.end(), [&](const auto& a, const auto& b) {
      if (a.first != b.first) return item_rank[a.first] < item_rank[b.first];
      return with_split &&
             std::string_view(split_name(a.second)) < std::string_view(split_name(b.second));
    });
    for (const auto& [item, split] : pairs) {
      block += users[user];
      block += '\t';
      block += items[item];
      if (with_split) {
        block += '\t';
        block += split_name(split);
      }
      block += '\n';
    }
    if (block.size() > 1 << 16) {
      hash.add(block);
      block.clear();
    }
  }
  hash.add(block);
  return hash.hex();
}

}  // namespace tessera

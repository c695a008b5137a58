#include "tessera/ops/topk.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "tessera/base/error.h"
#include "tessera/ops/block_product.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/part_kernels.h"
#include "tessera/ops/parts.h"

namespace tessera {
namespace {

constexpr int64_t kTileColumns = kernels::kBlockColumns<float>, kTileRows = kernels::kBlockRows;

constexpr int64_t kItemBlock = 512;
constexpr int64_t kStride = kItemBlock + kTileColumns;  // not a power of two, for the caches' sake
constexpr int64_t kUserBlock = 192;
static_assert(kItemBlock % kTileColumns == 0 && kUserBlock % kTileRows == 0);
constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

torch::Tensor plain(const torch::Tensor& t, const char* what) {
  TORCH_CHECK(t.dim() == 2 && t.is_floating_point(), what, " must be float [n, d], got ",
              t.sizes());
  return t.detach().to(torch::kCPU, torch::kFloat32).contiguous();
}

// Scores by inner product: items packed once into panels of kTileColumns, users by block.
class ProductSource {
 public:
  ProductSource(const torch::Tensor& users, const torch::Tensor& items)
      : users_(plain(users, "user vectors")), items_(plain(items, "item vectors")) {
    TORCH_CHECK(users_.size(1) == items_.size(1), "user vectors are ", users_.size(1),
                " wide, item vectors ", items_.size(1));
    const int64_t n_panels = rounded_up(n_items(), kTileColumns) / kTileColumns, d = depth();
    packed_ = torch::empty({n_panels, d, kTileColumns}, torch::kFloat32);
    float* to = packed_.mutable_data_ptr<float>();
    parallel_for(0, n_panels, 64, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t c = 0; c < kTileColumns; ++c) {
          pack(p * kTileColumns + c, to + p * d * kTileColumns + c);
        }
      }
    });
  }
  int64_t n_users() const { return users_.size(0); }
  int64_t n_items() const { return items_.size(0); }
  // False where the factors are so small that no sum overflows; few users do not pay for the look.
  bool may_be_nan() const {
    if (n_users() < 64 || n_items() == 0 || depth() == 0) return true;
    const auto largest = [](const torch::Tensor& t) {
      const auto [low, high] = t.aminmax();  // NaN where t has one
      return std::max(-low.item<double>(), high.item<double>());
    };
    const double bound = largest(users_) * largest(items_) * static_cast<double>(depth());
    return !(bound < std::numeric_limits<float>::max() / 2);
  }

  class Block {
   public:
    Block(const ProductSource& source, int64_t begin, int64_t end)
        : source_(source), n_rows_(rounded_up(end - begin, kTileRows)) {
      const int64_t d = source.depth();
      rows_.assign(static_cast<size_t>(n_rows_ * d), 0);
      std::copy_n(source.users_.const_data_ptr<float>() + begin * d, (end - begin) * d,
                  rows_.begin());
      panel_.resize(static_cast<size_t>(d * kTileColumns));
    }
    template <typename Limit>
    void fill(int64_t first, int64_t n, float* out, const Limit&) {
      const int64_t d = source_.depth();
      const float* panels = source_.packed_.const_data_ptr<float>();
      for (int64_t c = 0; c < n; c += kTileColumns) {
        kernels::block_product(
            kernels::BlockProduct<float>{rows_.data(), d, 1, panels + (first + c) * d, kTileColumns,
                                         d, out + c, kStride, n_rows_, kTileColumns, false});
      }
    }
    // Scores of chosen items of one user, the same numbers as fill's.
    void some(int64_t user, const int32_t* items, int64_t n, float* out) {
      const int64_t d = source_.depth();
      float scores[kTileColumns];
      for (int64_t begin = 0; begin < n; begin += kTileColumns) {
        const int64_t size = std::min(kTileColumns, n - begin);
        for (int64_t c = 0; c < kTileColumns; ++c) {
          source_.pack(items[begin + std::min(c, size - 1)], panel_.data() + c);
        }
        kernels::block_product(kernels::BlockProduct<float>{rows_.data() + user * d, d, 1,
                                                            panel_.data(), kTileColumns, d, scores,
                                                            kTileColumns, 1, kTileColumns, false});
        std::copy_n(scores, size, out + begin);
      }
    }

   private:
    const ProductSource& source_;
    int64_t n_rows_;
    std::vector<float> rows_, panel_;
  };

 private:
  int64_t depth() const { return users_.size(1); }
  void pack(int64_t item, float* to) const {  // zeros past the last item
    const int64_t d = depth();
    if (item < n_items()) {
      kernels::pack_column(items_.const_data_ptr<float>() + item * d, d, to);
    } else {
      for (int64_t k = 0; k < d; ++k) to[k * kTileColumns] = 0;
    }
  }
  torch::Tensor users_, items_, packed_;
};

class ScoreSource {
 public:
  explicit ScoreSource(const torch::Tensor& scores) : scores_(plain(scores, "scores")) {}
  int64_t n_users() const { return scores_.size(0); }
  int64_t n_items() const { return scores_.size(1); }
  bool may_be_nan() const { return true; }

  class Block {
   public:
    Block(const ScoreSource& source, int64_t begin, int64_t end)
        : from_(source.scores_.const_data_ptr<float>() + begin * source.n_items()),
          n_users_(end - begin),
          n_items_(source.n_items()) {}
    template <typename Limit>
    void fill(int64_t first, int64_t n, float* out, const Limit&) {
      for (int64_t u = 0; u < n_users_; ++u) {
        std::copy_n(from_ + u * n_items_ + first, n, out + u * kStride);
      }
    }
    void some(int64_t user, const int32_t* items, int64_t n, float* out) {
      for (int64_t i = 0; i < n; ++i) out[i] = from_[user * n_items_ + items[i]];
    }

   private:
    const float* from_;
    int64_t n_users_, n_items_;
  };

 private:
  torch::Tensor scores_;
};

// Scores by attention over parts: K + 1 products of a tile, then the softmax, where a user may
// still need it.
class PartSource {
 public:
  explicit PartSource(const PartFactors& of)
      : users_(plain(of.users, "user vectors")), n_items_(of.ids.size(0)) {
    const auto ids = plain(of.ids, "item vectors");
    const auto parts = of.parts.detach().to(torch::kCPU, torch::kFloat32).contiguous();
    const auto open = of.open.defined() ? of.open.contiguous() : torch::Tensor();
    TORCH_CHECK(parts.dim() == 3 && parts.size(0) == n_items_ && parts.size(2) == users_.size(1) &&
                    ids.size(1) == users_.size(1) &&
                    (!open.defined() || open.sizes() == parts.sizes().slice(0, 2)),
                "parts want users [U, d], ids [I, d], parts [I, K, d] and open [I, K], got ",
                users_.sizes(), " ", ids.sizes(), " ", parts.sizes());
    n_parts_ = parts.size(1);
    const int64_t n_tiles = rounded_up(n_items_, kTileColumns) / kTileColumns;
    packed_.resize(static_cast<size_t>(n_tiles * panel_size()));
    if (open.defined()) gates_.resize(static_cast<size_t>(n_tiles * gate_size()));
    const float *es = ids.const_data_ptr<float>(), *rs = parts.const_data_ptr<float>();
    const bool* gates = open.defined() ? open.const_data_ptr<bool>() : nullptr;
    parallel_for(0, n_tiles, 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        kernels::pack_part_tile(es, rs, gates, n_items_, n_parts_, users_.size(1), t * kTileColumns,
                                packed_.data() + t * panel_size(),
                                gates ? gates_.data() + t * gate_size() : nullptr);
      }
    });
  }
  int64_t n_users() const { return users_.size(0); }
  int64_t n_items() const { return n_items_; }
  bool may_be_nan() const { return true; }

  class Block {
   public:
    Block(const PartSource& source, int64_t begin, int64_t end)
        : source_(source), n_users_(end - begin) {
      const int64_t d = source.users_.size(1);
      rows_.assign(static_cast<size_t>(rounded_up(n_users_, kTileRows) * d), 0);
      std::copy_n(source.users_.const_data_ptr<float>() + begin * d, n_users_ * d, rows_.begin());
      a_.resize(static_cast<size_t>((source.n_parts_ + 1) * kTileRows * kTileColumns));
    }
    // Scores that cannot be above limit(user) may be given as -infinity.
    template <typename Limit>
    void fill(int64_t first, int64_t n, float* out, const Limit& limit) {
      constexpr int64_t kStep = kTileRows * kTileColumns;
      const int64_t d = source_.users_.size(1), n_parts = source_.n_parts_;
      for (int64_t c = 0; c < n; c += kTileColumns) {
        const int64_t tile = (first + c) / kTileColumns;
        const float* panel = source_.packed_.data() + tile * source_.panel_size();
        const float* gates =
            source_.gates_.empty() ? nullptr : source_.gates_.data() + tile * source_.gate_size();
        for (int64_t u = 0; u < n_users_; u += kTileRows) {
          for (int64_t k = 0; k <= n_parts; ++k) {
            kernels::block_product(kernels::BlockProduct<float>{
                rows_.data() + u * d, d, 1, panel + k * d * kTileColumns, kTileColumns, d,
                a_.data() + k * kStep, kTileColumns, kTileRows, kTileColumns, false});
          }
          for (int64_t r = 0; r < std::min(kTileRows, n_users_ - u); ++r) {
            const float* a = a_.data() + r * kTileColumns;
            float* to = out + (u + r) * kStride + c;
            if (kernels::part_below(a, kStep, gates, n_parts, limit(u + r))) {
              std::fill_n(to, kTileColumns, -std::numeric_limits<float>::infinity());
            } else {
              kernels::part_softmax(a, kStep, gates, n_parts, to);
            }
          }
        }
      }
    }

   private:
    const PartSource& source_;
    int64_t n_users_;
    std::vector<float> rows_, a_;
  };

 private:
  static_assert(kernels::kPartLanes == kTileColumns);
  int64_t panel_size() const { return (n_parts_ + 1) * users_.size(1) * kTileColumns; }
  int64_t gate_size() const { return n_parts_ * kTileColumns; }
  torch::Tensor users_;
  int64_t n_items_, n_parts_ = 0;
  std::vector<float> packed_, gates_;
};

// Rows of items of n users, checked.
struct Rows {
  torch::Tensor offsets, items;
  Rows(const torch::Tensor& o, const torch::Tensor& i, int64_t n, int64_t n_items, bool sorted,
       const char* what) {
    TORCH_CHECK(o.scalar_type() == torch::kInt64 && o.dim() == 1 && o.size(0) == n + 1 &&
                    i.scalar_type() == torch::kInt32 && i.dim() == 1,
                what, " need int64 [n + 1] offsets and int32 items");
    offsets = o.contiguous();
    items = i.contiguous();
    TORCH_CHECK(begin(0) == 0 && begin(n) == items.size(0), what,
                ": offsets do not span the items");
    const int32_t* item = data();
    for (int64_t u = 0; u < n; ++u) {
      TORCH_CHECK(begin(u) <= begin(u + 1) && begin(u + 1) <= items.size(0), what,
                  ": offsets must rise");
      for (int64_t e = begin(u); e < begin(u + 1); ++e) {
        TORCH_CHECK(item[e] >= 0 && item[e] < n_items, what, ": item ", item[e], " of ", n_items);
        TORCH_CHECK(!sorted || e == begin(u) || item[e - 1] <= item[e], what, " must be sorted");
      }
    }
  }
  Rows() = default;
  bool defined() const { return offsets.defined(); }
  int64_t begin(int64_t user) const { return offsets.const_data_ptr<int64_t>()[user]; }
  const int32_t* data() const { return items.const_data_ptr<int32_t>(); }
};

struct Masked {
  Rows rows;
  std::vector<int32_t> excluded;  // sorted
  torch::Tensor flags;
  Masked(const RankMask& mask, int64_t n, int64_t n_items) {
    if (mask.offsets.defined()) rows = Rows(mask.offsets, mask.items, n, n_items, true, "masks");
    if (!mask.excluded.defined()) return;
    TORCH_CHECK(mask.excluded.scalar_type() == torch::kBool && mask.excluded.dim() == 1 &&
                    mask.excluded.size(0) == n_items,
                "excluded items must be bool [", n_items, "], got ", mask.excluded.sizes());
    flags = mask.excluded.contiguous();
    for (int64_t i = 0; i < n_items; ++i) {
      if (is_excluded(i)) excluded.push_back(static_cast<int32_t>(i));
    }
  }
  bool is_excluded(int64_t item) const {
    return flags.defined() && flags.const_data_ptr<bool>()[item];
  }
};

RunError nan_score(int64_t item, int64_t row) {
  return RunError(Exit::diverged, fmt::format("the score of item {} for row {} is NaN", item, row));
}

// Walks all scores in blocks of users and items. `State` is made a block of users and gets
// state.add(user of the block, scores, first item, n) for every user and
// block of items, items ascending, and state.finish(). Scores of masked items arrive as NaN; those
// that are not above state.limit(user) may arrive as any such number.
template <typename Source, typename MakeState>
void rank(const Source& source, const Masked& masked, int64_t largest_block,
          const MakeState& make_state) {
  const int64_t n_users = source.n_users(), n_items = source.n_items();
  const int64_t n_threads = at::get_num_threads();
  const bool may_be_nan = source.may_be_nan();
  const int64_t block = std::clamp(rounded_up((n_users + n_threads - 1) / n_threads, kTileRows),
                                   kTileRows, std::clamp(largest_block, kTileRows, kUserBlock));
  const int64_t n_blocks = (n_users + block - 1) / block;
  parallel_for(0, n_blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(static_cast<size_t>(rounded_up(block, kTileRows) * kStride));
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first_user = b * block, size = std::min(block, n_users - first_user);
      typename Source::Block scorer(source, first_user, first_user + size);
      auto state = make_state(scorer, first_user, size);
      std::vector<int64_t> cursor(static_cast<size_t>(size));
      for (int64_t u = 0; u < size && masked.rows.defined(); ++u) {
        cursor[static_cast<size_t>(u)] = masked.rows.begin(first_user + u);
      }
      auto excluded = masked.excluded.begin();
      for (int64_t first = 0; first < n_items; first += kItemBlock) {
        const int64_t n = std::min(kItemBlock, n_items - first);
        scorer.fill(first, n, scores.data(), [&](int64_t u) { return state.limit(u); });
        const auto excluded_end =
            std::lower_bound(excluded, masked.excluded.end(), static_cast<int32_t>(first + n));
        for (int64_t u = 0; u < size; ++u) {
          float* row = scores.data() + u * kStride;
          if (may_be_nan && kernels::has_nan(row, n)) {
            const auto at = std::find_if(row, row + n, [](float x) { return x != x; });
            throw nan_score(first + (at - row), first_user + u);
          }
          if (masked.rows.defined()) {
            int64_t& next = cursor[static_cast<size_t>(u)];
            const int64_t last = masked.rows.begin(first_user + u + 1);
            for (; next < last && masked.rows.data()[next] < first + n; ++next) {
              row[masked.rows.data()[next] - first] = kNone;
            }
          }
          for (auto e = excluded; e != excluded_end; ++e) row[*e - first] = kNone;
          state.add(u, row, first, n);
        }
        excluded = excluded_end;
      }
      state.finish();
    }
  });
}

constexpr int64_t kWord = 32, kWords = kItemBlock / kWord;
constexpr int64_t kFewEntries = 128;  // sorted by counting

// A score and its item as one number: the greater stands first. Both zeros are one.
int64_t rising(int32_t bits) { return bits < 0 ? bits ^ 0x7FFFFFFF : bits; }
int64_t entry(float score, int64_t item) {
  return rising(std::bit_cast<int32_t>(score + 0.0F)) << 32 | ~static_cast<uint32_t>(item);
}
float score_of(int64_t entry) {
  return std::bit_cast<float>(static_cast<int32_t>(rising(static_cast<int32_t>(entry >> 32))));
}
int32_t item_of(int64_t entry) { return static_cast<int32_t>(~static_cast<uint32_t>(entry)); }

template <typename Source>
TopK top_k(const Source& source, const RankMask& mask, int64_t k) {
  TORCH_CHECK(k >= 0, "k must be at least 0, got ", k);
  const int64_t n_users = source.n_users(), n_items = source.n_items();
  const Masked masked(mask, n_users, n_items);
  TopK top{torch::full({n_users, k}, -1, torch::kInt32),
           torch::full({n_users, k}, -std::numeric_limits<float>::infinity(), torch::kFloat32)};
  int32_t* out_items = top.items.template mutable_data_ptr<int32_t>();
  float* out_scores = top.scores.template mutable_data_ptr<float>();
  const int64_t kept = std::min(k, n_items), room = std::min(3 * kept + 64, n_items);

  struct State {
    int64_t first_user, kept, room, k;
    int32_t* out_items;
    float* out_scores;
    struct User {
      std::vector<int64_t> best;  // n of them, with room for a word more
      int64_t n = 0;
      float threshold = 0;
      bool full = false;  // then only a score above the threshold can enter
    };
    std::vector<User> users;
    std::vector<float> maxima;

    float limit(int64_t user) const {
      const User& state = users[static_cast<size_t>(user)];
      return state.full ? state.threshold : -std::numeric_limits<float>::infinity();
    }
    void add(int64_t user, const float* scores, int64_t first, int64_t n) {
      if (kept == 0) return;
      User& state = users[static_cast<size_t>(user)];
      int64_t* best = state.best.data();
      if (!state.full) guess(state, scores, n);
      int64_t i = 0;
      for (; i < n && !state.full; ++i) {
        if (scores[i] != scores[i]) continue;
        best[state.n++] = entry(scores[i], first + i);
        if (state.n == room && room > kept) cut(state);
      }
      uint32_t words[kWords];
      const int64_t n_words = (n - i) / kWord;
      kernels::above(scores + i, n_words, state.threshold, words);
      for (int64_t w = 0; w < n_words; ++w, i += kWord) {
        for (uint32_t bits = words[w]; bits != 0; bits &= bits - 1) {
          const int64_t at = i + std::countr_zero(bits);
          best[state.n++] = entry(scores[at], first + at);
        }
        if (state.n >= room) cut(state);
      }
      for (; i < n; ++i) {
        if (scores[i] > state.threshold) best[state.n++] = entry(scores[i], first + i);
      }
      if (state.n >= room) cut(state);
    }
    // A first threshold: where `kept` of many disjoint groups hold a score of at least x, no score
    // below x is wanted.
    void guess(User& state, const float* scores, int64_t n) {
      int64_t times = 16;
      while (times > 1 && (n % times != 0 || n / times < 2 * kept + 16)) times /= 2;
      if (times == 1) return;
      const int64_t n_groups = n / times;
      maxima.resize(static_cast<size_t>(n_groups));
      kernels::fold_max(scores, n_groups, times, maxima.data());
      const auto [least, most] = std::minmax_element(maxima.begin(), maxima.end());
      if (*least == -std::numeric_limits<float>::infinity()) return;
      float low = std::nextafter(*least, -std::numeric_limits<float>::infinity()), high = *most;
      for (int step = 0; step < 8; ++step) {
        const float middle = low + (high - low) / 2;
        (kernels::count(maxima.data(), n_groups, middle).above >= kept ? low : high) = middle;
      }
      state.threshold = low;
      state.full = true;
    }
    void cut(User& state) const {
      int64_t* best = state.best.data();
      std::nth_element(best, best + (kept - 1), best + state.n, std::greater<>());
      state.threshold = score_of(best[kept - 1]);
      state.full = true;
      state.n = kept;
    }
    void finish() {
      for (size_t u = 0; u < users.size(); ++u) {
        if (users[u].n > kept) cut(users[u]);
        int64_t* best = users[u].best.data();
        int64_t places[kFewEntries];
        const int64_t n = users[u].n, at = (first_user + static_cast<int64_t>(u)) * k;
        if (n <= kFewEntries) {
          kernels::places(best, n, places);
        } else {
          std::sort(best, best + n, std::greater<>());
        }
        for (int64_t i = 0; i < n; ++i) {
          const int64_t to = at + (n <= kFewEntries ? places[i] : i);
          out_items[to] = item_of(best[i]);
          out_scores[to] = score_of(best[i]);
        }
      }
    }
  };
  // Long lists make smaller blocks, so that a block's lists take 32 MiB at most.
  rank(source, masked, (int64_t{1} << 22) / std::max<int64_t>(1, room),
       [&](typename Source::Block&, int64_t first_user, int64_t size) {
         State state{first_user, kept, room, k, out_items, out_scores, {}, {}};
         state.users.resize(static_cast<size_t>(size));
         for (auto& user : state.users) user.best.resize(static_cast<size_t>(room + kWord));
         return state;
       });
  return top;
}

template <typename Source>
Ranks count_above(const Source& source, const RankMask& mask, const torch::Tensor& held_offsets,
                  const torch::Tensor& held_items) {
  const int64_t n_users = source.n_users(), n_items = source.n_items();
  const Masked masked(mask, n_users, n_items);
  const Rows held(held_offsets, held_items, n_users, n_items, false, "held-out items");
  const int64_t m = held.items.size(0);
  Ranks ranks{torch::zeros({m}, torch::kFloat32), torch::zeros({m}, torch::kInt64),
              torch::zeros({m}, torch::kInt64), torch::zeros({m}, torch::kInt64),
              torch::empty({n_users}, torch::kInt64)};
  int64_t* candidates = ranks.n_candidates.template mutable_data_ptr<int64_t>();
  for (int64_t u = 0; u < n_users; ++u) {
    candidates[u] = n_items - static_cast<int64_t>(masked.excluded.size());
    if (!masked.rows.defined()) continue;
    const int32_t* item = masked.rows.data();
    for (int64_t e = masked.rows.begin(u); e < masked.rows.begin(u + 1); ++e) {
      const bool again = e > masked.rows.begin(u) && item[e] == item[e - 1];
      candidates[u] -= !again && !masked.is_excluded(item[e]);
    }
  }

  struct State {
    const Rows& held;
    int64_t first_user;
    const float* score;
    int64_t *greater, *lower, *other;

    float limit(int64_t) const { return -std::numeric_limits<float>::infinity(); }
    void add(int64_t user, const float* scores, int64_t first, int64_t n) {
      for (int64_t e = held.begin(first_user + user); e < held.begin(first_user + user + 1); ++e) {
        const kernels::Counts counts = kernels::count(scores, n, score[e]);
        greater[e] += counts.above;
        if (counts.equal == 0) continue;
        const int64_t at = held.data()[e] - first;  // where the item itself would stand
        const bool itself = at >= 0 && at < n && scores[at] == score[e];
        other[e] += counts.equal - itself;
        if (at > 0) lower[e] += kernels::count(scores, std::min(at, n), score[e]).equal;
      }
    }
    void finish() {}
  };
  float* scores = ranks.scores.template mutable_data_ptr<float>();
  int64_t* greater = ranks.n_greater.template mutable_data_ptr<int64_t>();
  int64_t* lower = ranks.n_equal_lower.template mutable_data_ptr<int64_t>();
  int64_t* other = ranks.n_equal_other.template mutable_data_ptr<int64_t>();
  rank(source, masked, kUserBlock,
       [&](typename Source::Block& scorer, int64_t first_user, int64_t size) {
         for (int64_t u = 0; u < size; ++u) {
           const int64_t begin = held.begin(first_user + u);
           scorer.some(u, held.data() + begin, held.begin(first_user + u + 1) - begin,
                       scores + begin);
         }
         return State{held, first_user, scores, greater, lower, other};
       });
  return ranks;
}

/// Scores as ranking sees them, in plain tensor operations.
struct Dense {
  torch::Tensor scores;  // float32 [n, n_items]
  torch::Tensor open;    // bool, the candidates
  Dense(const torch::Tensor& scores_in, const RankMask& mask)
      : scores(scores_in.detach().to(torch::kFloat32)),
        open(torch::ones_like(scores, torch::kBool)) {
    const auto on = scores.device();
    const Masked checked(mask, scores.size(0), scores.size(1));
    const auto nan = scores.isnan();
    if (nan.any().item<bool>()) {
      const auto first = nan.nonzero()[0];
      throw nan_score(first[1].item<int64_t>(), first[0].item<int64_t>());
    }
    if (mask.offsets.defined()) {
      const auto row = rows_of_slots(mask.offsets.to(on), mask.items.size(0));
      open.index_put_({row, mask.items.to(on, torch::kInt64)}, torch::zeros({}, open.options()));
    }
    if (mask.excluded.defined()) open.logical_and_(mask.excluded.to(on).logical_not());
  }
};

torch::Tensor product_scores(const torch::Tensor& users, const torch::Tensor& items) {
  return users.detach().to(torch::kFloat32).mm(items.detach().to(torch::kFloat32).t());
}

}  // namespace

TopK top_k_scores_composed(const torch::Tensor& scores, const RankMask& mask, int64_t k) {
  const torch::NoGradGuard no_grad;
  constexpr float kLast = -std::numeric_limits<float>::infinity();
  const Dense of(scores, mask);
  const int64_t n = of.scores.size(0), kept = std::min(k, of.scores.size(1));
  // By score, then candidates first; both sorts leave equals in the order of the items.
  const auto by_score =
      std::get<1>(of.scores.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true));
  const auto closed = of.open.gather(1, by_score).logical_not();
  const auto first = std::get<1>(closed.to(torch::kInt32).sort(/*stable=*/true, 1, false));
  const auto order = by_score.gather(1, first).narrow(1, 0, kept);
  const auto gone = of.open.gather(1, order).logical_not();
  TopK top{torch::full({n, k}, -1, torch::kInt32), torch::full({n, k}, kLast, torch::kFloat32)};
  top.items.narrow(1, 0, kept).copy_(order.masked_fill(gone, -1));
  top.scores.narrow(1, 0, kept).copy_((of.scores.gather(1, order) + 0).masked_fill(gone, kLast));
  return top;
}

Ranks count_above_scores_composed(const torch::Tensor& scores, const RankMask& mask,
                                  const torch::Tensor& held_offsets,
                                  const torch::Tensor& held_items) {
  const torch::NoGradGuard no_grad;
  constexpr int64_t kEntries = 1 << 22;  // compared at once
  const Dense of(scores, mask);
  const int64_t n_items = of.scores.size(1), m = held_items.size(0);
  const Rows held(held_offsets, held_items, of.scores.size(0), n_items, false, "held-out items");
  const auto on = of.scores.device();
  const auto rows = rows_of_slots(held_offsets.to(on), m);
  const auto items = held_items.to(on, torch::kInt64);
  const auto place = torch::arange(n_items, items.options());
  const int64_t block = std::max<int64_t>(1, kEntries / std::max<int64_t>(1, n_items));
  std::vector<torch::Tensor> own_scores, greater, lower, other;
  for (int64_t begin = 0; begin == 0 || begin < m; begin += block) {
    const int64_t size = std::min(block, m - begin);
    const auto row = rows.narrow(0, begin, size), item = items.narrow(0, begin, size).unsqueeze(1);
    const auto all = of.scores.index_select(0, row), open = of.open.index_select(0, row);
    const auto own = all.gather(1, item);
    const auto equal = (all == own).logical_and_(open);
    own_scores.push_back(own.squeeze(1));
    greater.push_back((all > own).logical_and_(open).sum(1));
    lower.push_back(equal.logical_and(place < item).sum(1));
    other.push_back(equal.logical_and(place != item).sum(1));
  }
  const auto whole = [](const std::vector<torch::Tensor>& parts) {
    return torch::cat(parts).to(torch::kCPU);
  };
  return {whole(own_scores), whole(greater), whole(lower), whole(other),
          of.open.sum(1).to(torch::kCPU)};
}

TopK top_k_product(const torch::Tensor& users, const torch::Tensor& items, const RankMask& mask,
                   int64_t k) {
  if (composed(users)) return top_k_scores_composed(product_scores(users, items), mask, k);
  return top_k(ProductSource(users, items), mask, k);
}

TopK top_k_scores(const torch::Tensor& scores, const RankMask& mask, int64_t k) {
  if (composed(scores)) return top_k_scores_composed(scores, mask, k);
  return top_k(ScoreSource(scores), mask, k);
}

TopK top_k_parts(const PartFactors& factors, const RankMask& mask, int64_t k) {
  if (composed(factors.users)) {
    return top_k_scores_composed(
        part_scores(factors.users, factors.ids, factors.parts, factors.open), mask, k);
  }
  return top_k(PartSource(factors), mask, k);
}

Ranks count_above_product(const torch::Tensor& users, const torch::Tensor& items,
                          const RankMask& mask, const torch::Tensor& held_offsets,
                          const torch::Tensor& held_items) {
  if (composed(users)) {
    return count_above_scores_composed(product_scores(users, items), mask, held_offsets,
                                       held_items);
  }
  return count_above(ProductSource(users, items), mask, held_offsets, held_items);
}

Ranks count_above_scores(const torch::Tensor& scores, const RankMask& mask,
                         const torch::Tensor& held_offsets, const torch::Tensor& held_items) {
  if (composed(scores)) {
    return count_above_scores_composed(scores, mask, held_offsets, held_items);
  }
  return count_above(ScoreSource(scores), mask, held_offsets, held_items);
}

}  // namespace tessera

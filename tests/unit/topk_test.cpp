#include "tessera/ops/topk.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/random.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/part_kernels.h"
#include "tessera/ops/parts.h"

namespace tessera {
namespace {

struct Case {
  torch::Tensor users, items, scores;
  RankMask mask;
  torch::Tensor held_offsets, held_items;
};

// Vectors of small integers: products are exact and many scores are equal.
Case integer_case(int64_t n, int64_t n_items, int64_t width, bool masked) {
  const Random random(4, "topk");
  Case c;
  c.users = uniform(n, width, -3, 4, random.stream("u")).floor();
  c.items = uniform(n_items, width, -3, 4, random.stream("i")).floor();
  c.scores = c.users.matmul(c.items.t());
  std::vector<int64_t> offsets = {0}, held_offsets = {0};
  std::vector<int32_t> items, held;
  for (int64_t u = 0; u < n; ++u) {
    for (int64_t i = 0; i < n_items; ++i) {
      const double draw =
          random.uniform(1, static_cast<uint64_t>(u), static_cast<uint32_t>(i)) * (u % 3 + 1);
      if (draw < 0.2) items.push_back(static_cast<int32_t>(i));
      if (draw > 0.15 && draw < 0.25) held.push_back(static_cast<int32_t>(i));
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
    held_offsets.push_back(static_cast<int64_t>(held.size()));
  }
  c.held_offsets = torch::tensor(held_offsets, torch::kInt64);
  c.held_items = torch::tensor(held, torch::kInt32);
  if (masked) {
    c.mask.offsets = torch::tensor(offsets, torch::kInt64);
    c.mask.items = torch::tensor(items, torch::kInt32);
    c.mask.excluded = uniform(1, n_items, 0, 1, random.stream("x")).squeeze(0) < 0.1;
  }
  return c;
}

// A full stable sort: protocol section 4 word for word.
std::vector<int32_t> full_order(const Case& c, int64_t user) {
  std::set<int32_t> out;
  if (c.mask.offsets.defined()) {
    const int64_t* at = c.mask.offsets.const_data_ptr<int64_t>();
    for (int64_t e = at[user]; e < at[user + 1]; ++e) {
      out.insert(c.mask.items[e].item<int32_t>());
    }
  }
  std::vector<int32_t> order;
  for (int64_t i = 0; i < c.scores.size(1); ++i) {
    const bool excluded = c.mask.excluded.defined() && c.mask.excluded[i].item<bool>();
    if (!excluded && !out.count(static_cast<int32_t>(i))) order.push_back(static_cast<int32_t>(i));
  }
  const float* score = c.scores.const_data_ptr<float>() + user * c.scores.size(1);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return score[a] > score[b]; });
  return order;
}

void expect_top(const TopK& top, const Case& c, int64_t k) {
  ASSERT_EQ(top.items.sizes(), (std::vector<int64_t>{c.scores.size(0), k}));
  for (int64_t u = 0; u < c.scores.size(0); ++u) {
    const std::vector<int32_t> order = full_order(c, u);
    for (int64_t j = 0; j < k; ++j) {
      const int32_t item = top.items[u][j].item<int32_t>();
      if (j < static_cast<int64_t>(order.size())) {
        ASSERT_EQ(item, order[static_cast<size_t>(j)]) << "user " << u << " place " << j;
        ASSERT_EQ(top.scores[u][j].item<float>(), c.scores[u][item].item<float>());
      } else {
        ASSERT_EQ(item, -1);
        ASSERT_EQ(top.scores[u][j].item<float>(), -std::numeric_limits<float>::infinity());
      }
    }
  }
}

TEST(TopK, EqualsAFullStableSort) {
  for (const bool masked : {false, true}) {
    for (const auto& [n, n_items, width] :
         {std::tuple{7, 40, 3}, std::tuple{1, 1, 1}, std::tuple{13, 700, 5}, std::tuple{3, 513, 2},
          std::tuple{2, 16, 0}}) {
      const Case c = integer_case(n, n_items, width, masked);
      for (const int64_t k : {0, 1, 10, 50}) {
        expect_top(top_k_product(c.users, c.items, c.mask, k), c, k);
        expect_top(top_k_scores(c.scores, c.mask, k), c, k);
      }
    }
  }
}

TEST(TopK, AListMayBeAsLongAsTheCatalogue) {
  const Case c = integer_case(4, 600, 3, true);
  expect_top(top_k_product(c.users, c.items, c.mask, 600), c, 600);
  expect_top(top_k_scores(c.scores, c.mask, 610), c, 610);
}

TEST(TopK, EmptyInputsGiveEmptyLists) {
  EXPECT_EQ(top_k_product(torch::zeros({0, 3}), torch::zeros({5, 3}), {}, 2).items.size(0), 0);
  const TopK none = top_k_product(torch::zeros({2, 3}), torch::zeros({0, 3}), {}, 2);
  EXPECT_TRUE((none.items == -1).all().item<bool>());
}

TEST(TopK, MinusInfinityIsACandidate) {
  const float low = -std::numeric_limits<float>::infinity();
  const TopK top = top_k_scores(torch::tensor({{low, 1.0f, low}}), {}, 3);
  EXPECT_TRUE(torch::equal(top.items, torch::tensor({{1, 0, 2}}, torch::kInt32)));
}

// More items than a block, so that a first threshold is taken from groups; both infinities and the
// largest numbers among them, all of them or a few.
TEST(TopK, ExtremeScoresInLongRows) {
  const float inf = std::numeric_limits<float>::infinity(),
              most = std::numeric_limits<float>::max();
  for (const int64_t k : {1, 10, 50}) {
    for (const float value : {-inf, -most, 0.0F, most, inf}) {
      for (const int64_t step : {1, 2, 97}) {
        auto scores = (torch::arange(1100) * 37).remainder(1009).to(torch::kFloat32).unsqueeze(0);
        scores.slice(1, 0, 1100, step).fill_(value);
        std::vector<int32_t> order(1100);
        std::iota(order.begin(), order.end(), 0);
        const float* score = scores.const_data_ptr<float>();
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return score[a] > score[b]; });
        const auto wanted = torch::tensor(order, torch::kInt32).narrow(0, 0, k);
        EXPECT_TRUE(torch::equal(top_k_scores(scores, {}, k).items[0], wanted))
            << k << " " << value << " " << step;
      }
    }
  }
}

TEST(TopK, RanksAreThePlacesInTheFullOrder) {
  for (const bool masked : {false, true}) {
    const Case c = integer_case(9, 530, 3, masked);
    const Ranks product =
        count_above_product(c.users, c.items, c.mask, c.held_offsets, c.held_items);
    const Ranks dense = count_above_scores(c.scores, c.mask, c.held_offsets, c.held_items);
    EXPECT_TRUE(torch::equal(product.n_greater, dense.n_greater));
    EXPECT_TRUE(torch::equal(product.n_equal_lower, dense.n_equal_lower));
    EXPECT_TRUE(torch::equal(product.n_equal_other, dense.n_equal_other));
    EXPECT_TRUE(torch::equal(product.n_candidates, dense.n_candidates));
    for (int64_t u = 0; u < 9; ++u) {
      const std::vector<int32_t> order = full_order(c, u);
      EXPECT_EQ(dense.n_candidates[u].item<int64_t>(), static_cast<int64_t>(order.size()));
      for (int64_t e = c.held_offsets[u].item<int64_t>(); e < c.held_offsets[u + 1].item<int64_t>();
           ++e) {
        const int32_t held = c.held_items[e].item<int32_t>();
        const float score = c.scores[u][held].item<float>();
        EXPECT_EQ(dense.scores[e].item<float>(), score);
        int64_t greater = 0, equal = 0, lower = 0;
        for (const int32_t item : order) {
          const float other = c.scores[u][item].item<float>();
          greater += other > score;
          equal += other == score && item != held;
          lower += other == score && item < held;
        }
        EXPECT_EQ(dense.n_greater[e].item<int64_t>(), greater);
        EXPECT_EQ(dense.n_equal_other[e].item<int64_t>(), equal);
        EXPECT_EQ(dense.n_equal_lower[e].item<int64_t>(), lower);
      }
    }
  }
}

TEST(TopK, RanksOfRealProductsMeetTheirLists) {
  const torch::Tensor users = normal(50, 37, 0, 1, Random(1, "u"));
  const torch::Tensor items = normal(900, 37, 0, 1, Random(1, "i"));
  const TopK top = top_k_product(users, items, {}, 20);
  const Ranks ranks =
      count_above_product(users, items, {}, torch::arange(0, 1001, 20), top.items.reshape({-1}));
  EXPECT_TRUE(torch::equal((ranks.n_greater + ranks.n_equal_lower).view({50, 20}),
                           torch::arange(20).expand({50, 20})));
  EXPECT_TRUE(torch::equal(ranks.scores.view({50, 20}), top.scores));
  const torch::Tensor expected = users.matmul(items.t()).gather(1, top.items.to(torch::kInt64));
  EXPECT_TRUE(torch::allclose(top.scores, expected, 1e-5, 1e-5));
}

TEST(TopK, ThreadsAndNeighboursDoNotMatter) {
  const torch::Tensor users = normal(401, 64, 0, 1, Random(1, "u"));
  const torch::Tensor items = normal(1300, 64, 0, 1, Random(1, "i"));
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const TopK one = top_k_product(users, items, {}, 30);
  at::set_num_threads(2);
  const TopK two = top_k_product(users, items, {}, 30);
  const TopK alone = top_k_product(users.slice(0, 0, 400), items, {}, 30);
  const TopK last = top_k_product(users.slice(0, 400, 401), items, {}, 30);
  at::set_num_threads(before);
  EXPECT_TRUE(torch::equal(one.items, two.items));
  EXPECT_TRUE(torch::equal(one.scores, two.scores));
  EXPECT_TRUE(torch::equal(one.scores.slice(0, 0, 400), alone.scores));
  EXPECT_TRUE(torch::equal(one.scores.slice(0, 400), last.scores));
}

TEST(TopK, NanEndsTheRunAndIsNamed) {
  torch::Tensor scores = torch::zeros({3, 700});
  scores[2][650] = std::numeric_limits<float>::quiet_NaN();
  try {
    top_k_scores(scores, {}, 5);
    FAIL() << "no error";
  } catch (const RunError& error) {
    EXPECT_EQ(error.code(), Exit::diverged);
    EXPECT_STREQ(error.what(), "the score of item 650 for row 2 is NaN");
  }
  torch::Tensor users = torch::ones({2, 3});
  users[1][1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(top_k_product(users, torch::ones({4, 3}), {}, 1), RunError);
  // Of many users, too: a NaN in one factor, and 0 times infinity.
  torch::Tensor many = torch::ones({100, 4}), items = torch::ones({600, 4});
  EXPECT_NO_THROW(top_k_product(many, items, {}, 1));
  many[70][3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(top_k_product(many, items, {}, 1), RunError);
  many[70][3] = 0;
  EXPECT_NO_THROW(top_k_product(many, items, {}, 1));
  items[555][3] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(top_k_product(many, items, {}, 1), RunError);
  EXPECT_THROW(count_above_scores(scores, {}, torch::zeros({4}, torch::kInt64),
                                  torch::empty({0}, torch::kInt32)),
               RunError);
}

TEST(TopK, BadMasksAreRefused) {
  const torch::Tensor scores = torch::zeros({1, 3});
  const auto mask = [](std::vector<int64_t> offsets, std::vector<int32_t> items) {
    return RankMask{torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32), {}};
  };
  EXPECT_THROW(top_k_scores(scores, mask({0, 1}, {3}), 1), c10::Error);
  EXPECT_THROW(top_k_scores(scores, mask({0, 1}, {-1}), 1), c10::Error);
  EXPECT_THROW(top_k_scores(scores, mask({0, 2}, {1, 0}), 1), c10::Error);
  EXPECT_THROW(top_k_scores(scores, mask({0, 2}, {1}), 1), c10::Error);
  EXPECT_THROW(top_k_scores(scores, mask({0}, {}), 1), c10::Error);
  EXPECT_THROW(top_k_scores(scores, {{}, {}, torch::zeros({2}, torch::kBool)}, 1), c10::Error);
  EXPECT_THROW(top_k_scores(scores, {}, -1), c10::Error);
}

/// Parts [n_items, 4, d] and what goes with them; small whole numbers, so that many scores are
/// equal.
PartFactors part_case(int64_t n_users, int64_t n_items, int64_t d, bool whole, bool gated) {
  const auto draw = [&](std::vector<int64_t> shape) {
    return whole ? torch::randint(-2, 3, shape).to(torch::kFloat) : torch::randn(shape);
  };
  PartFactors out{draw({n_users, d}), draw({n_items, d}), draw({n_items, 4, d}), {}};
  if (gated) out.open = torch::rand({n_items, 4}) > 0.4;
  return out;
}

// Leaving tiles out changes no list: those of the whole ranking, bit for bit, for any threads.
TEST(TopK, PartsThatAreLeftOutWereNotWanted) {
  const int before = at::get_num_threads();
  torch::manual_seed(3);
  for (const auto& [n, n_items, d] :
       std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {13, 1100, 5}, {25, 530, 16}, {2, 16, 3}}) {
    for (const bool whole : {false, true}) {
      for (const bool gated : {false, true}) {
        const PartFactors of = part_case(n, n_items, d, whole, gated);
        RankMask mask;
        mask.offsets = torch::arange(n + 1, torch::kInt64);
        mask.items = torch::arange(n, torch::kInt64).remainder(n_items).to(torch::kInt32);
        mask.excluded = torch::arange(n_items).remainder(7) == 3;
        const auto scores = part_scores(of.users, of.ids, of.parts, of.open);
        for (const auto& without : {RankMask{}, mask}) {
          for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{10}, n_items}) {
            const TopK wanted = top_k_scores(scores, without, k);
            for (const int threads : {1, 2}) {
              at::set_num_threads(threads);
              const TopK found = top_k_parts(of, without, k);
              EXPECT_TRUE(torch::equal(found.items, wanted.items)) << n_items << " " << k;
              EXPECT_TRUE(torch::equal(found.scores, wanted.scores)) << n_items << " " << k;
            }
            at::set_num_threads(before);
          }
        }
      }
    }
  }
}

TEST(TopK, PartsWithNaN) {
  torch::manual_seed(4);
  const PartFactors of = part_case(3, 1100, 4, false, false);
  of.parts[1099][2][0] = std::nanf("");  // in a tile that would be left out
  EXPECT_THROW(top_k_parts(of, {}, 5), RunError);
}

// The bound holds where it is tight, all parts being alike, and where nothing is open.
TEST(TopK, BoundOfATileOfParts) {
  torch::manual_seed(5);
  constexpr int64_t kLanes = kernels::kPartLanes, kParts = 4;
  const float infinity = std::numeric_limits<float>::infinity();
  for (int trial = 0; trial < 200; ++trial) {
    auto a = 3 * torch::randn({kParts + 1, kLanes});
    if (trial % 2 == 0) a.slice(0, 2).copy_(a[1].expand({kParts - 1, kLanes}));
    const auto open = (torch::rand({kParts, kLanes}) > 0.3).to(torch::kFloat);
    const float* gates = trial % 3 == 0 ? nullptr : open.const_data_ptr<float>();
    const float* in = a.const_data_ptr<float>();
    std::array<float, kLanes> y{};
    kernels::part_softmax(in, kLanes, gates, kParts, y.data());
    const float most = *std::max_element(y.begin(), y.end());
    EXPECT_FALSE(kernels::part_below(in, kLanes, gates, kParts, std::nextafter(most, -infinity)));
    const float above = (a[0] + a.slice(0, 1).amax(0).clamp_min(0)).max().item<float>();
    EXPECT_TRUE(kernels::part_below(in, kLanes, gates, kParts, above + 1e-4F));
  }
}

}  // namespace
}  // namespace tessera

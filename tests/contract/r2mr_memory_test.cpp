// Alone in its process, whose peak is then its own: r2mr section 13.1, U = I = 20,000, E = 200,000.
// A dense [U, I] takes 800 MB in half precision, 1,600 in single.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <set>
#include <vector>

#include "tessera/nn/review.h"
#include "tessera/ops/edge_scores.h"
#include "tessera/ops/fill.h"

namespace tessera {
namespace {

constexpr int64_t kNodes = 20'000, kLimitMb = 200;

int64_t peak_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

BipartiteGraph ten_edges_a_user() {
  const Random random(7, "edges");
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < kNodes; ++u) {
    std::set<int32_t> row;
    uint32_t draw = 0;
    while (row.size() < 10) {
      row.insert(static_cast<int32_t>(
          random.below(static_cast<uint32_t>(kNodes), 0, static_cast<uint64_t>(u), draw)));
    }
    items.insert(items.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return BipartiteGraph(torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32),
                        kNodes);
}

TEST(R2mrMemory, ScoringAndReviewingWalkEdgesOnly) {
  const BipartiteGraph graph = ten_edges_a_user();
  const auto y = normal(kNodes, 32, 0, 1, Random(8)).requires_grad_();
  const auto p = normal(kNodes, 32, 0, 1, Random(9)).requires_grad_();
  const int64_t start = peak_mb();

  edge_sums(graph, y, p, 1, std::sqrt(32.0)).sum().backward();
  const int64_t scored = peak_mb();
  EXPECT_LT(scored - start, kLimitMb);

  // A reviewer is taught and asked, of all items and of some.
  const ReviewForm form{32, 1, false, true, false, false, .3};
  const std::vector<torch::Tensor> rows = {y.detach(), p.detach()};
  CrossReviewer reviewer(graph, {"image", "text"}, form, Random(4));
  std::array<int64_t, 2> steps = {50, 50};
  while (steps[0] + steps[1] > 0) reviewer.train_epoch(rows, steps);
  const auto all = reviewer.scores(0, rows[0]);
  const auto some = torch::arange(0, kNodes, 7, torch::kInt64);
  EXPECT_TRUE(torch::allclose(reviewer.scores(0, rows[0].index_select(0, some), some),
                              all.index_select(0, some), 0, 1e-6));
  const int64_t reviewed = peak_mb();
  EXPECT_LT(reviewed - start, kLimitMb);
  std::printf("peak above %d MB: %d MB after scores and their gradient, %d MB after a reviewer\n",
              static_cast<int>(start), static_cast<int>(scored - start),
              static_cast<int>(reviewed - start));
}

}  // namespace
}  // namespace tessera

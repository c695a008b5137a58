// Alone in its process, whose peak is then its own: r2mr section 13.1, U = I = 20,000, E = 200,000.
// A dense [U, I] takes 800 MB in half precision, 1,600 in single.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include "tessera/nn/review.h"
#include "tessera/ops/edge_scores.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/process.h"
#include "tests/random_graph.h"

namespace tessera {
namespace {

constexpr int64_t kNodes = 20'000, kLimitMb = 200;

TEST(R2mrMemory, ScoringAndReviewingWalkEdgesOnly) {
  const BipartiteGraph graph = planted::random_graph(kNodes, kNodes, [](int64_t) { return 10; });
  const auto y = normal(kNodes, 32, 0, 1, Random(8)).requires_grad_();
  const auto p = normal(kNodes, 32, 0, 1, Random(9)).requires_grad_();
  const int64_t start = peak_rss_mb();

  edge_sums(graph, y, p, 1, std::sqrt(32.0)).sum().backward();
  const int64_t scored = peak_rss_mb();
  EXPECT_LT(scored - start, kLimitMb);

  // A reviewer is taught and asked, of all items and of some.
  const ReviewForm form{32, 1, false, true, false, false, .3};
  const std::vector<torch::Tensor> rows = {y.detach(), p.detach()};
  CrossReviewer reviewer(graph, {"image", "text"}, form, Random(4));
  std::array<int64_t, 2> steps = {50, 50};
  while (steps[0] + steps[1] > 0) reviewer.train_epoch(rows, steps);
  const auto all = reviewer.scores(reviewer.projected_tastes(), 0, rows[0]);
  const auto some = torch::arange(0, kNodes, 7, torch::kInt64);
  EXPECT_TRUE(torch::allclose(
      reviewer.scores(reviewer.projected_tastes(), 0, rows[0].index_select(0, some), some),
      all.index_select(0, some), 0, 1e-6));
  const int64_t reviewed = peak_rss_mb();
  EXPECT_LT(reviewed - start, kLimitMb);
  std::printf("peak above %d MB: %d MB after scores and their gradient, %d MB after a reviewer\n",
              static_cast<int>(start), static_cast<int>(scored - start),
              static_cast<int>(reviewed - start));
}

}  // namespace
}  // namespace tessera

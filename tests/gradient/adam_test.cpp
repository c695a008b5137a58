#include "tessera/ops/adam.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/base/random.h"
#include "tessera/ops/fill.h"

namespace tessera {
namespace {

using Decay = AdamOptions::Decay;

AdamOptions options_of(Decay decay, bool schedule) {
  AdamOptions options;
  options.learning_rate = [schedule](int64_t step) {
    return schedule ? 0.05 * std::pow(0.96, static_cast<double>(step) / 7) : 0.01;
  };
  options.decay = decay;
  options.weight_decay = decay == Decay::none ? 0 : 0.03;
  return options;
}

// Distinct rows of one step, few or none or all.
torch::Tensor touched(int64_t n_rows, int64_t step, const Random& random) {
  std::vector<int64_t> rows;
  const double share = step % 5 == 0 ? 0 : step % 11 == 0 ? 1 : 0.15;
  for (int64_t r = 0; r + 2 < n_rows; ++r) {  // the last two rows are never touched
    const auto at = static_cast<uint64_t>(r);
    if (random.uniform(static_cast<uint64_t>(step), at, 0) < share) rows.push_back(r);
  }
  random.shuffle(rows, static_cast<uint64_t>(step), 1000000);
  return torch::tensor(rows, torch::kInt64);
}

class LazyAdam : public testing::TestWithParam<std::tuple<Decay, bool, int64_t, torch::Dtype>> {};

TEST_P(LazyAdam, EqualsDenseBitForBit) {
  const auto [decay, schedule, width, type] = GetParam();
  const int64_t n_rows = 23, n_steps = 90;
  const AdamOptions options = options_of(decay, schedule);
  const Random random(5, "touch");
  const torch::Tensor start = normal(n_rows, width, 0, 1, random).to(type);
  torch::Tensor dense = start.clone();
  DenseAdam adam;
  RowTable table(start.clone());
  table.configure(options);
  for (int64_t step = 1; step <= n_steps; ++step) {
    const torch::Tensor rows = touched(n_rows, step, random);
    const torch::Tensor leaf = table.gather(rows);
    ASSERT_TRUE(torch::equal(leaf, dense.index_select(0, rows))) << "step " << step;
    const torch::Tensor gradient =
        normal(rows.size(0), width, 0, 1, random.stream(std::to_string(step))).to(type);
    if (rows.size(0) > 0) (leaf * gradient).sum().backward();
    table.step();
    adam.step("t", dense, torch::zeros_like(dense).index_copy(0, rows, gradient), options);
    if (step == 40) {  // what a checkpoint does
      RowTable::Parts parts = table.parts();
      EXPECT_TRUE(torch::equal(parts.value, dense));
      RowTable other;
      other.load(parts);
      other.configure(options);
      table = std::move(other);
    }
    if (step == 60) {
      const torch::Tensor some = torch::tensor({4, 4, 22}, torch::kInt64);
      EXPECT_TRUE(torch::equal(table.rows(some), dense.index_select(0, some)));
    }
  }
  EXPECT_TRUE(torch::equal(table.value(), dense));
  const RowTable::Parts parts = table.parts();
  EXPECT_TRUE(torch::equal(parts.m, adam.moments()["t"].m));
  EXPECT_TRUE(torch::equal(parts.v, adam.moments()["t"].v));
  EXPECT_EQ(parts.step, n_steps);
  const bool moved = !torch::equal(dense[n_rows - 1], start[n_rows - 1]);
  EXPECT_EQ(moved, decay != Decay::none);
}

INSTANTIATE_TEST_SUITE_P(All, LazyAdam,
                         testing::Combine(testing::Values(Decay::none, Decay::gradient,
                                                          Decay::decoupled),
                                          testing::Bool(), testing::Values<int64_t>(1, 7, 64, 300),
                                          testing::Values(torch::kFloat32, torch::kFloat64)));

// The paper's update (Kingma & Ba 2015, algorithm 1; AdamW for the decoupled decay), in torch.
TEST(Adam, KernelEqualsComposed) {
  for (const Decay decay : {Decay::none, Decay::gradient, Decay::decoupled}) {
    for (const int64_t n : {0, 1, 17, 20000}) {
      const AdamOptions options = options_of(decay, true);
      torch::Tensor value = normal(1, n, 0, 1, Random(1)).squeeze(0).to(torch::kFloat64);
      torch::Tensor composed = value.clone(), m = torch::zeros_like(value), v = m.clone();
      DenseAdam adam;
      for (int64_t step = 1; step <= 5; ++step) {
        const torch::Tensor gradient =
            normal(1, n, 0, 1, Random(static_cast<uint64_t>(step))).squeeze(0).to(torch::kFloat64);
        adam.step("x", value, gradient, options);
        adam_composed(composed, m, v, gradient, step, options);
      }
      EXPECT_TRUE(torch::allclose(value, composed, 1e-12, 1e-13));
      EXPECT_EQ(adam.moments()["x"].step, 5);
    }
  }
}

// By hand: m = .1 g, v = .001 g g; the corrections cancel, so the first step is lr g / (|g| + eps).
TEST(Adam, FirstStepByHand) {
  AdamOptions options = options_of(Decay::none, false);
  torch::Tensor value = torch::tensor({1.0, -2.0}, torch::kFloat64);
  DenseAdam adam;
  adam.step("x", value, torch::tensor({0.5, -3.0}, torch::kFloat64), options);
  EXPECT_NEAR(value[0].item<double>(), 1 - 0.01 * 0.5 / (0.5 + 1e-8), 1e-12);
  EXPECT_NEAR(value[1].item<double>(), -2 + 0.01 * 3.0 / (3.0 + 1e-8), 1e-12);
}

TEST(Adam, ThreadsDoNotMatter) {
  const int before = at::get_num_threads();
  std::vector<torch::Tensor> results;
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    const AdamOptions options = options_of(Decay::gradient, true);
    RowTable table(normal(500, 65, 0, 1, Random(1)));
    table.configure(options);
    for (int64_t step = 1; step <= 20; ++step) {
      const torch::Tensor leaf = table.gather(touched(500, step, Random(2)));
      (leaf * leaf).sum().backward();
      table.step();
    }
    results.push_back(table.value().clone());
  }
  at::set_num_threads(before);
  EXPECT_TRUE(torch::equal(results[0], results[1]));
}

TEST(Adam, MisuseIsRefused) {
  RowTable table(torch::zeros({3, 2}));
  table.configure(options_of(Decay::none, false));
  EXPECT_THROW(table.rows(torch::tensor({3}, torch::kInt64)), c10::Error);
  EXPECT_THROW(table.gather(torch::tensor({-1}, torch::kInt64)), c10::Error);
  table.gather(torch::tensor({1, 1}, torch::kInt64)).sum().backward();
  EXPECT_THROW(table.step(), c10::Error);
  RowTable::Parts parts{torch::zeros({3, 2}), {}, {}, torch::zeros({2}, torch::kInt64), 0};
  EXPECT_THROW(table.load(parts), InputError);
  parts.last_step = torch::full({3}, 9, torch::kInt64);
  EXPECT_THROW(table.load(parts), InputError);
  parts.step = 9;
  parts.last_step = torch::tensor({9, 0, 8}, torch::kInt64);
  EXPECT_THROW(table.load(parts), InputError);
  parts.last_step = torch::tensor({9, 0, 9}, torch::kInt64);
  parts.m = torch::zeros({1, 2});
  EXPECT_THROW(table.load(parts), InputError);
  EXPECT_THROW(RowTable(torch::zeros({4})), c10::Error);
}

}  // namespace
}  // namespace tessera

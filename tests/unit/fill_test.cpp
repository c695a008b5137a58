#include "tessera/ops/fill.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>

namespace tessera {
namespace {

TEST(Fill, EveryEntryIsTheDrawOfItsRowAndColumn) {
  const Random random(7, "table");
  const torch::Tensor u = uniform(5, 7, -2, 3, random), n = normal(5, 7, 1, 2, random);
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t c = 0; c < 7; ++c) {
      const auto row = static_cast<uint64_t>(r);
      const auto draw = static_cast<uint32_t>(c);
      EXPECT_EQ(u[r][c].item<float>(), static_cast<float>(-2 + 5 * random.uniform(0, row, draw)));
      EXPECT_EQ(n[r][c].item<float>(), static_cast<float>(1 + 2 * random.normal(0, row, draw)));
    }
  }
}

TEST(Fill, ThreadsDoNotMatter) {
  const Random random(1, "threads");
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const torch::Tensor u = uniform(999, 33, 0, 1, random), n = normal(999, 33, 0, 1, random);
  const torch::Tensor mask = dropout_mask(torch::arange(999), 33, 0.3, random, 5);
  at::set_num_threads(2);
  EXPECT_TRUE(torch::equal(u, uniform(999, 33, 0, 1, random)));
  EXPECT_TRUE(torch::equal(n, normal(999, 33, 0, 1, random)));
  EXPECT_TRUE(torch::equal(mask, dropout_mask(torch::arange(999), 33, 0.3, random, 5)));
  at::set_num_threads(before);
}

// Bounds and standard deviations: bm3 section 1, Baby.
TEST(Fill, XavierHasTheSpreadOfTheSpecification) {
  const torch::Tensor users = xavier_uniform(19445, 64, Random(1, "users"));
  EXPECT_NEAR(users.abs().max().item<double>(), 0.01754, 1e-5);
  EXPECT_NEAR(users.mean().item<double>(), 0, 1e-4);
  EXPECT_NEAR(users.std().item<double>(), 0.01754 / std::sqrt(3.0), 1e-4);
  EXPECT_NEAR(xavier_uniform(7050, 64, Random(1)).abs().max().item<double>(), 0.02904, 1e-5);
  const torch::Tensor weight = xavier_normal(64, 4096, Random(1, "weight"));
  EXPECT_NEAR(weight.std().item<double>(), 0.0219, 2e-4);
  EXPECT_NEAR(weight.mean().item<double>(), 0, 3e-4);
  EXPECT_EQ(weight.sizes(), (std::vector<int64_t>{64, 4096}));
}

TEST(Fill, LinearDefaultIsBoundedByTheRootOfFanIn) {
  const torch::Tensor bias = linear_default_bias(64, 4096, Random(1));
  EXPECT_EQ(bias.sizes(), (std::vector<int64_t>{4096}));
  EXPECT_LE(bias.abs().max().item<double>(), 0.125);
  EXPECT_GT(bias.abs().max().item<double>(), 0.124);
  EXPECT_LT(bias.min().item<double>(), -0.12);
  EXPECT_LE(linear_default_weight(10, 16, Random(1)).abs().max().item<double>(), 0.25);
}

TEST(Fill, AnyRowsOfAMaskEqualThoseOfTheWholeMask) {
  const Random random(3, "mask");
  const torch::Tensor whole = dropout_mask(torch::arange(200), 10, 0.4, random, 17);
  const torch::Tensor rows = torch::tensor({199, 3, 3, 0, 57}, torch::kInt64);
  EXPECT_TRUE(torch::equal(dropout_mask(rows, 10, 0.4, random, 17), whole.index_select(0, rows)));
  EXPECT_FALSE(torch::equal(dropout_mask(torch::arange(200), 10, 0.4, random, 18), whole));
  EXPECT_EQ(dropout_mask(torch::empty({0}, torch::kInt64), 10, 0.4, random, 1).size(0), 0);
}

TEST(Fill, AMaskIsTheWordsOfItsRow) {
  const Random random(3, "words");
  const int64_t step = (int64_t{1} << 40) + 9;
  const torch::Tensor rows = torch::tensor({int64_t{0}, int64_t{7}, (int64_t{1} << 39) + 5});
  for (const int64_t width : {1, 63, 64, 131}) {
    const torch::Tensor mask = dropout_mask(rows, width, 0.25, random, step);
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        const uint32_t word =
            random.bits(static_cast<uint64_t>(step), static_cast<uint64_t>(rows[r].item<int64_t>()),
                        static_cast<uint32_t>(c));
        ASSERT_EQ(mask[r][c].item<float>(), word < (1U << 30) ? 0.0F : static_cast<float>(1 / 0.75))
            << width << " " << r << " " << c;
      }
    }
  }
}

TEST(Fill, MaskKeepsTheExpectation) {
  const torch::Tensor mask = dropout_mask(torch::arange(2000), 50, 0.3, Random(3), 1);
  EXPECT_NEAR((mask == 0).to(torch::kFloat32).mean().item<double>(), 0.3, 0.005);
  EXPECT_EQ(mask.max().item<float>(), static_cast<float>(1 / 0.7));
  EXPECT_TRUE(
      torch::equal(dropout_mask(torch::arange(3), 4, 0, Random(3), 1), torch::ones({3, 4})));
  EXPECT_THROW(dropout_mask(torch::arange(3), 4, 1, Random(3), 1), c10::Error);
}

}  // namespace
}  // namespace tessera

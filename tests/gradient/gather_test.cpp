#include "tessera/ops/gather.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include "tessera/base/random.h"
#include "tessera/ops/fill.h"

namespace tessera {
namespace {

TEST(Gather, IsIndexSelectInValueAndGradientForAnyNumberOfThreads) {
  const Random random(3, "gather");
  for (const torch::Dtype type : {torch::kFloat32, torch::kFloat64}) {
    const auto initial = normal(700, 5, 0, 1, random.stream("table")).to(type);
    auto index = torch::empty({3000}, torch::kInt64);
    for (int64_t k = 0; k < 3000; ++k) {
      uint32_t draw = 0;
      index[k] = static_cast<int64_t>(random.below(600, 0, static_cast<uint64_t>(k), draw));
    }
    const auto weight = normal(3000, 5, 0, 1, random.stream("weight")).to(type);
    const auto gradient = [&](const auto& gather) {
      const auto table = initial.clone().requires_grad_();
      const auto rows = gather(table);
      EXPECT_TRUE(torch::equal(rows, initial.index_select(0, index)));
      (rows * rows * weight).sum().backward();
      return table.grad();
    };
    const auto ours = [&](const torch::Tensor& table) { return gather_rows(table, index); };
    const auto mine = gradient(ours);
    const auto theirs =
        gradient([&](const torch::Tensor& table) { return table.index_select(0, index); });
    EXPECT_TRUE(torch::allclose(mine, theirs, 1e-5, 1e-5));
    EXPECT_EQ(mine.narrow(0, 600, 100).abs().max().item<double>(), 0);
    at::set_num_threads(1);
    EXPECT_TRUE(torch::equal(gradient(ours), mine));
    at::set_num_threads(2);
  }
}

}  // namespace
}  // namespace tessera

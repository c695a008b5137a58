#include "tessera/ops/fill.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>

#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/philox.h"

namespace tessera {
namespace {

template <typename Row>  // row(r, to) writes one row
torch::Tensor by_rows(int64_t rows, int64_t cols, const Row& row) {
  torch::Tensor out = torch::empty({rows, cols}, torch::kFloat32);
  float* to = out.mutable_data_ptr<float>();
  parallel_for(0, rows, std::max<int64_t>(1, 4096 / std::max<int64_t>(1, cols)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t r = begin; r < end; ++r) row(r, to + r * cols);
               });
  return out;
}

}  // namespace

torch::Tensor uniform(int64_t rows, int64_t cols, double low, double high, const Random& random) {
  return by_rows(rows, cols, [&](int64_t row, float* to) {
    for (int64_t c = 0; c < cols; c += 4) {
      const auto words = random.block(0, static_cast<uint64_t>(row), static_cast<uint32_t>(c / 4));
      for (int64_t j = 0; j < std::min<int64_t>(4, cols - c); ++j) {
        to[c + j] =
            static_cast<float>(low + (high - low) * (words[static_cast<size_t>(j)] * 0x1p-32));
      }
    }
  });
}

torch::Tensor normal(int64_t rows, int64_t cols, double mean, double std, const Random& random) {
  return by_rows(rows, cols, [&](int64_t row, float* to) {
    for (int64_t c = 0; c < cols; ++c) {
      to[c] = static_cast<float>(
          mean + std * random.normal(0, static_cast<uint64_t>(row), static_cast<uint32_t>(c)));
    }
  });
}

torch::Tensor xavier_uniform(int64_t rows, int64_t cols, const Random& random) {
  const double bound = std::sqrt(6.0 / static_cast<double>(std::max<int64_t>(1, rows + cols)));
  return uniform(rows, cols, -bound, bound, random);
}

torch::Tensor xavier_normal(int64_t rows, int64_t cols, const Random& random) {
  return normal(rows, cols, 0,
                std::sqrt(2.0 / static_cast<double>(std::max<int64_t>(1, rows + cols))), random);
}

torch::Tensor linear_default_weight(int64_t fan_out, int64_t fan_in, const Random& random) {
  const double bound = 1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, fan_in)));
  return uniform(fan_out, fan_in, -bound, bound, random);
}

torch::Tensor linear_default_bias(int64_t fan_in, int64_t n, const Random& random) {
  const double bound = 1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, fan_in)));
  return uniform(1, n, -bound, bound, random).squeeze(0);
}

torch::Tensor dropout_mask(const torch::Tensor& rows, int64_t width, double rate,
                           const Random& random, int64_t step) {
  TORCH_CHECK(rate >= 0 && rate < 1, "a dropout rate lies in [0, 1), got ", rate);
  TORCH_CHECK(rows.scalar_type() == torch::kInt64 && rows.dim() == 1, "rows must be int64 [n]");
  if (composed(rows)) return dropout_mask_composed(rows, width, rate, random, step);
  if (rate == 0) return torch::ones({rows.size(0), width}, torch::kFloat32);
  const torch::Tensor index = rows.contiguous();
  const int64_t* row_of = index.const_data_ptr<int64_t>();
  // A draw below `limit` drops: probability rate to within 2^-32.
  const uint64_t limit = static_cast<uint64_t>(std::llround(rate * 0x1p32));
  const float kept = static_cast<float>(1 / (1 - rate));
  return by_rows(index.size(0), width, [&](int64_t row, float* to) {
    const auto counter =
        Random::counter(static_cast<uint64_t>(step), static_cast<uint64_t>(row_of[row]), 0);
    const auto [k0, k1] = random.key();
    kernels::dropout_row(to, width, {{counter[0], counter[1], counter[2], counter[3]}, {k0, k1}},
                         limit, kept);
  });
}

torch::Tensor dropout_mask_composed(const torch::Tensor& rows, int64_t width, double rate,
                                    const Random& random, int64_t step) {
  const int64_t n = rows.size(0), n_blocks = (width + 3) / 4;
  const auto row = rows.unsqueeze(1);
  // As Random::counter: what does not fit a word of the row stands above block and step.
  const auto block = torch::arange(n_blocks, rows.options()).unsqueeze(0);
  const auto above = [&](int64_t by) {
    return torch::bitwise_right_shift(row, by).bitwise_and(0xF) * (1 << 28);
  };
  const auto words = philox_composed(
      {block + above(32), row.bitwise_and(0xFFFFFFFF),
       torch::full({1, 1}, step & 0xFFFFFFFF, rows.options()), above(36) + (step >> 32)},
      random.key());
  std::vector<torch::Tensor> draws;
  for (const auto& word : words) draws.push_back(word.expand({n, n_blocks}));
  return torch::stack(draws, 2)
      .view({n, 4 * n_blocks})
      .narrow(1, 0, width)
      .ge(static_cast<int64_t>(std::llround(rate * 0x1p32)))
      .to(torch::kFloat32)
      .mul_(1 / (1 - rate));
}

}  // namespace tessera

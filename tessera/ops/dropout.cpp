#include "tessera/ops/dropout.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/philox.h"
#include "tessera/ops/sequence_kernels.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

int64_t grain_of(int64_t width) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width)); }

class Dropout : public torch::autograd::Function<Dropout> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x_in, DropKey drop) {
    const auto x = x_in.contiguous();
    const auto kept = torch::empty(x.sizes(), torch::kUInt8);
    const auto out = torch::empty_like(x);
    const int64_t width = x.size(1);
    uint8_t* keep = kept.mutable_data_ptr<uint8_t>();
    by_type(x, [&](auto type) {
      using T = decltype(type);
      const T* from = x.const_data_ptr<T>();
      T* to = out.mutable_data_ptr<T>();
      parallel_for(0, x.size(0), grain_of(width), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          kernels::keep_row(drop.key, static_cast<uint64_t>(r), drop.limit, keep + r * width,
                            width);
          kernels::masked(from + r * width, keep + r * width, static_cast<T>(drop.scale),
                          to + r * width, width);
        }
      });
    });
    context->save_for_backward({kept});
    context->saved_data["scale"] = drop.scale;
    return out;
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto kept = context->get_saved_variables()[0];
    const double scale = context->saved_data["scale"].toDouble();
    const auto g = upstream[0].contiguous();
    const auto out = torch::empty_like(g);
    const uint8_t* keep = kept.const_data_ptr<uint8_t>();
    by_type(g, [&](auto type) {
      using T = decltype(type);
      const T* from = g.const_data_ptr<T>();
      T* to = out.mutable_data_ptr<T>();
      parallel_for(0, g.numel(), 8192, [&](int64_t begin, int64_t end) {
        kernels::masked(from + begin, keep + begin, static_cast<T>(scale), to + begin, end - begin);
      });
    });
    return {out, torch::Tensor()};
  }
};

}  // namespace

DropKey drop_key(double rate, const Random& random, int64_t step) {
  TORCH_CHECK(rate < 1, "a dropout rate lies in [0, 1), got ", rate);
  const auto words = random.block(static_cast<uint64_t>(step), 0, 0);
  const auto limit = static_cast<uint32_t>(std::llround(rate * 0x1p16));
  return {{words[0], words[1]}, limit, 1 / (1 - limit * 0x1p-16)};
}

torch::Tensor dropout(const torch::Tensor& x, const DropKey& drop) {
  if (drop.limit == 0) return x;
  if (composed(x)) return dropout_composed(x, drop);
  return Dropout::apply(x, drop);
}

torch::Tensor dropout_composed(const torch::Tensor& x, const DropKey& drop) {
  const auto rows = torch::arange(x.size(0), x.options().dtype(torch::kInt64));
  return x * kept_composed(rows, x.size(1), drop).to(x.scalar_type()).mul_(drop.scale);
}

torch::Tensor kept_composed(const torch::Tensor& rows_in, int64_t width, const DropKey& drop) {
  // As kernels::keep_row: eight counters make 64 draws, by half words, the counters innermost.
  const int64_t n = rows_in.numel(), n_groups = (width + 63) / 64;
  const auto rows = rows_in.reshape({n, 1});
  const auto counters = torch::arange(8 * n_groups, rows.options()).unsqueeze(0);
  const auto zero = torch::zeros({1, 1}, rows.options());
  const auto words = philox_composed(
      {counters, rows.bitwise_and(0xFFFFFFFF), torch::bitwise_right_shift(rows, 32), zero},
      drop.key);
  std::vector<torch::Tensor> halves;
  for (const auto& word : words) {
    const auto whole = word.expand({n, 8 * n_groups}).view({n, n_groups, 1, 8});
    halves.push_back(whole.bitwise_and(0xFFFF));
    halves.push_back(torch::bitwise_right_shift(whole, 16));
  }
  auto sizes = rows_in.sizes().vec();
  sizes.push_back(width);
  return torch::cat(halves, 2)
      .ge(static_cast<int64_t>(drop.limit))
      .view({n, 64 * n_groups})
      .narrow(1, 0, width)
      .reshape(sizes);
}

}  // namespace tessera

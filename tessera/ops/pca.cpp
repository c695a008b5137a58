#include "tessera/ops/pca.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "tessera/base/error.h"
#include "tessera/ops/fill.h"

namespace tessera {
namespace {

constexpr int64_t kExactWidth = 2048;
constexpr int64_t kBlock = 1024;  // rows converted at a time
constexpr int64_t kSpare = 16;    // columns of the subspace beyond k
constexpr int64_t kIterations = 8;

// The present rows in float64, by blocks, without the mean where it is defined.
struct Table {
  torch::Tensor rows, index, mean;
  int64_t n() const { return index.size(0); }
  int64_t width() const { return rows.size(1); }
  void each(const std::function<void(int64_t, const torch::Tensor&)>& use) const {
    for (int64_t begin = 0; begin < n(); begin += kBlock) {
      const int64_t end = std::min(n(), begin + kBlock);
      torch::Tensor block = rows.index_select(0, index.slice(0, begin, end)).to(torch::kFloat64);
      if (mean.defined()) block = block - mean;
      use(begin, block);
    }
  }
  torch::Tensor times(const torch::Tensor& right) const {  // X right
    torch::Tensor out = torch::empty({n(), right.size(1)}, torch::kFloat64);
    each([&](int64_t begin, const torch::Tensor& block) {
      out.slice(0, begin, begin + block.size(0)).copy_(block.matmul(right));
    });
    return out;
  }
  torch::Tensor transposed_times(const torch::Tensor& right) const {  // X^T right
    torch::Tensor out = torch::zeros({width(), right.size(1)}, torch::kFloat64);
    each([&](int64_t begin, const torch::Tensor& block) {
      out.addmm_(block.t(), right.slice(0, begin, begin + block.size(0)));
    });
    return out;
  }
};

torch::Tensor orthonormal(const torch::Tensor& x) {
  return std::get<0>(torch::linalg_qr(x, "reduced"));
}

void fix_signs(torch::Tensor& axes) {
  if (axes.numel() == 0) return;
  const auto largest = axes.gather(1, axes.abs().argmax(1, /*keepdim=*/true));
  axes = torch::where(largest < 0, -axes, axes);
}

}  // namespace

torch::Tensor Pca::transform(const torch::Tensor& rows) const {
  TORCH_CHECK(rows.dim() == 2 && rows.size(1) == mean.size(0), "pca was fitted to a width of ",
              mean.size(0), ", got ", rows.sizes());
  const torch::NoGradGuard no_grad;
  const Table table{rows, torch::arange(rows.size(0)), mean};
  return table.times(axes.t()) / scale;
}

torch::Tensor Pca::inverse(const torch::Tensor& coordinates) const {
  TORCH_CHECK(coordinates.dim() == 2 && coordinates.size(1) == axes.size(0), "pca has ",
              axes.size(0), " axes, got coordinates ", coordinates.sizes());
  const torch::NoGradGuard no_grad;
  return (coordinates.to(torch::kFloat64) * scale).matmul(axes) + mean;
}

int64_t n_axes(int64_t k, int64_t width, int64_t n_rows) {
  return std::max<int64_t>(0, std::min({k, width, n_rows - 1}));
}

Pca fit_pca(const torch::Tensor& rows, int64_t k, const Random& random,
            const torch::Tensor& present) {
  TORCH_CHECK(rows.dim() == 2 && rows.is_floating_point() && k >= 0,
              "pca needs float [n, width] rows, got ", rows.sizes());
  TORCH_CHECK(!present.defined() || (present.scalar_type() == torch::kBool && present.dim() == 1 &&
                                     present.size(0) == rows.size(0)),
              "pca needs presence as bool [", rows.size(0), "]");
  const torch::NoGradGuard no_grad;
  Table table{rows.detach(),
              present.defined() ? present.nonzero().squeeze(1) : torch::arange(rows.size(0)),
              {}};
  const int64_t n = table.n(), width = table.width();
  Pca pca;
  pca.mean = torch::zeros({width}, torch::kFloat64);
  table.each([&](int64_t, const torch::Tensor& block) { pca.mean += block.sum(0); });
  if (n > 0) pca.mean /= static_cast<double>(n);
  if (!pca.mean.isfinite().all().item<bool>()) {
    throw data_error("pca: the rows hold NaN or infinity");
  }
  table.mean = pca.mean;
  double total = 0;
  table.each(
      [&](int64_t, const torch::Tensor& block) { total += block.square().sum().item<double>(); });

  const int64_t kept = n_axes(k, width, n);
  torch::Tensor squares;  // of the singular values, falling
  if (kept == 0) {
    pca.axes = torch::zeros({0, width}, torch::kFloat64);
    squares = torch::zeros({0}, torch::kFloat64);
  } else if (width <= kExactWidth) {
    torch::Tensor scatter = torch::zeros({width, width}, torch::kFloat64);
    table.each([&](int64_t, const torch::Tensor& block) { scatter.addmm_(block.t(), block); });
    const auto [values, vectors] = torch::linalg_eigh(scatter);
    squares = values.flip(0).slice(0, 0, kept).clamp_min(0);
    pca.axes = vectors.t().flip(0).slice(0, 0, kept).contiguous();
  } else {
    const int64_t columns = std::min({kept + kSpare, width, n});
    torch::Tensor basis = orthonormal(normal(width, columns, 0, 1, random).to(torch::kFloat64));
    for (int64_t i = 0; i < kIterations; ++i) {
      basis = orthonormal(table.transposed_times(orthonormal(table.times(basis))));
    }
    // The exact solution within the subspace.
    const torch::Tensor inside = table.times(basis);
    const auto [values, vectors] = torch::linalg_eigh(inside.t().matmul(inside));
    squares = values.flip(0).slice(0, 0, kept).clamp_min(0);
    pca.axes = basis.matmul(vectors.flip(1).slice(1, 0, kept)).t().contiguous();
  }
  fix_signs(pca.axes);
  pca.explained = total > 0 ? squares / total : torch::zeros_like(squares);
  const double deviation =
      kept > 0 ? std::sqrt(squares.sum().item<double>() / static_cast<double>(n * kept)) : 0;
  // Below this share of the mean it is rounding: the rows are all equal.
  const double rounding = width > 0 ? 1e-12 * pca.mean.abs().max().item<double>() : 0;
  if (deviation > rounding) pca.scale = deviation;
  return pca;
}

}  // namespace tessera

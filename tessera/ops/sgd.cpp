#include "tessera/ops/sgd.h"

#include <algorithm>
#include <cmath>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/triple_kernels.h"

namespace tessera {

BprSgdLoss bpr_sgd(torch::Tensor& users, torch::Tensor& items, const torch::Tensor& u,
                   const torch::Tensor& p, const torch::Tensor& n, const BprSgdOptions& options) {
  TORCH_CHECK(users.is_contiguous() && items.is_contiguous() && users.dtype() == items.dtype() &&
                  users.size(1) == items.size(1) && n.dim() == 2 && n.size(0) == u.size(0) &&
                  p.size(0) == u.size(0) && n.is_contiguous(),
              "bpr_sgd wants contiguous tables of one width, u and p [B], n [B, K]");
  if (composed(users)) return bpr_sgd_composed(users, items, u, p, n, options);
  const int64_t d = users.size(1), k = n.size(1), n_triples = n.numel();
  const auto* user_of = u.const_data_ptr<int64_t>();
  const auto* positive_of = p.const_data_ptr<int64_t>();
  const auto* negative_of = n.const_data_ptr<int64_t>();
  double bpr = 0, squares = 0;
  by_type(users, [&](auto type) {
    using T = decltype(type);
    T* user_rows = users.mutable_data_ptr<T>();
    T* item_rows = items.mutable_data_ptr<T>();
    const T keep = static_cast<T>(1 - options.learning_rate * options.reg);
    for (int64_t t = 0; t < n_triples; ++t) {
      T* a = user_rows + user_of[t / k] * d;
      T* b = item_rows + positive_of[t / k] * d;
      T* c = item_rows + negative_of[t] * d;
      const kernels::Triple<T> at = kernels::triple(a, b, c, d);
      const double weight = 1 / (1 + std::exp(static_cast<double>(at.margin)));
      // -log(1 - weight) of the margin, without overflow at either end.
      bpr += at.margin > 0 ? std::log1p(std::exp(-static_cast<double>(at.margin)))
                           : std::log1p(std::exp(static_cast<double>(at.margin))) -
                                 static_cast<double>(at.margin);
      squares += static_cast<double>(at.squares) / 2;
      kernels::move_triple(a, b, c, d, static_cast<T>(options.learning_rate * weight), keep);
    }
  });
  const auto mean = [&](double sum) {
    return torch::scalar_tensor(n_triples > 0 ? sum / static_cast<double>(n_triples) : 0,
                                torch::kFloat64);
  };
  return {mean(bpr), mean(squares)};
}

BprSgdLoss bpr_sgd_composed(torch::Tensor& users, torch::Tensor& items, const torch::Tensor& u,
                            const torch::Tensor& p, const torch::Tensor& n,
                            const BprSgdOptions& options) {
  const torch::NoGradGuard no_grad;
  const int64_t k = n.size(1), n_triples = n.numel();
  const double rate = options.learning_rate, keep = 1 - rate * options.reg;
  const auto negatives = n.flatten();
  auto bpr = torch::zeros({}, users.options().dtype(torch::kFloat64)), squares = bpr.clone();
  for (int64_t t = 0; t < n_triples; ++t) {
    const auto at_a = u.narrow(0, t / k, 1), at_b = p.narrow(0, t / k, 1);
    const auto at_c = negatives.narrow(0, t, 1);
    const auto a = users.index_select(0, at_a), b = items.index_select(0, at_b);
    const auto c = items.index_select(0, at_c), apart = b - c;
    const auto margin = (a * apart).sum();
    const auto pull = torch::sigmoid(-margin) * rate;
    bpr += torch::softplus(-margin);
    squares += (a.square() + b.square() + c.square()).sum() / 2;
    users.index_copy_(0, at_a, keep * a + pull * apart);
    items.index_copy_(0, at_b, keep * b + pull * a);
    items.index_copy_(0, at_c, keep * c - pull * a);
  }
  const auto divisor = static_cast<double>(std::max<int64_t>(1, n_triples));
  return {bpr / divisor, squares / divisor};
}

}  // namespace tessera

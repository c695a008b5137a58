#include "tessera/ops/losses.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

using kernels::dot;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;
using torch::autograd::variable_list;

constexpr double kEps = 1e-8;
constexpr int64_t kGrain = 64;  // rows a thread takes at least

/// d cos(a, b) / da = (b / |b| - cos a / |a|) / |a|; below the guard cos is a.b / eps.
template <typename T>
void add_cosine_gradient(const T* a, const T* b, int64_t d, T aa, T bb, T ab, T weight, T* to) {
  const T product = std::sqrt(aa) * std::sqrt(bb);
  if (product > static_cast<T>(kEps)) {
    kernels::combine(-weight / product, b, weight * (ab / product) / aa, a, d, to);
  } else {
    for (int64_t i = 0; i < d; ++i) to[i] = -weight * b[i] / static_cast<T>(kEps);
  }
}

class Cosine : public torch::autograd::Function<Cosine> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& a_in,
                               const torch::Tensor& b_in, const torch::Tensor& w_in) {
    const auto a = a_in.contiguous(), b = b_in.contiguous();
    const auto w = w_in.to(a.scalar_type()).contiguous();
    const bool to_b = b_in.requires_grad();
    const int64_t n = a.size(0), d = a.size(1);
    const auto da = torch::empty_like(a);
    const auto db = to_b ? torch::empty_like(b) : torch::Tensor();
    const auto values = torch::zeros({n}, torch::kFloat64);
    by_type(a, [&](auto type) {
      using T = decltype(type);
      const T* as = a.const_data_ptr<T>();
      const T* bs = b.const_data_ptr<T>();
      const T* ws = w.const_data_ptr<T>();
      T* das = da.mutable_data_ptr<T>();
      T* dbs = to_b ? db.mutable_data_ptr<T>() : nullptr;
      double* value = values.mutable_data_ptr<double>();
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const T* ar = as + row * d;
          const T* br = bs + row * d;
          const T aa = dot(ar, ar, d), bb = dot(br, br, d), ab = dot(ar, br, d);
          const T product = std::max(std::sqrt(aa) * std::sqrt(bb), static_cast<T>(kEps));
          value[row] = static_cast<double>(ws[row]) * (1.0 - static_cast<double>(ab / product));
          add_cosine_gradient(ar, br, d, aa, bb, ab, ws[row], das + row * d);
          if (to_b) add_cosine_gradient(br, ar, d, bb, aa, ab, ws[row], dbs + row * d);
        }
      });
    });
    context->save_for_backward({da, db});
    return values.sum().to(a.scalar_type());
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    return {saved[0] * upstream[0], saved[1].defined() ? saved[1] * upstream[0] : torch::Tensor(),
            torch::Tensor()};
  }
};

class MeanApart : public torch::autograd::Function<MeanApart> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x_in,
                               const torch::Tensor& y_in, bool squared) {
    const auto x = x_in.contiguous(), y = y_in.contiguous();
    const int64_t n = x.size(0), d = x.size(1);
    const auto gradient = torch::empty_like(x);
    double sum = 0;
    by_type(x, [&](auto type) {
      using T = decltype(type);
      const T* xs = x.const_data_ptr<T>();
      const T* ys = y.const_data_ptr<T>();
      T* to = gradient.mutable_data_ptr<T>();
      const T scale = static_cast<T>(squared ? 2 : 1) / static_cast<T>(n * d);
      std::vector<T> apart(static_cast<size_t>(d)), sign(static_cast<size_t>(d));
      for (int64_t r = 0; r < n; ++r, xs += d, ys += d, to += d) {
        for (int64_t i = 0; i < d; ++i) apart[static_cast<size_t>(i)] = xs[i] - ys[i];
        if (!squared) {
          for (size_t i = 0; i < sign.size(); ++i) {
            sign[i] = static_cast<T>((apart[i] > 0) - (apart[i] < 0));
          }
        }
        const T* along = squared ? apart.data() : sign.data();
        sum += static_cast<double>(dot(apart.data(), along, d));
        for (int64_t i = 0; i < d; ++i) to[i] = scale * along[i];
      }
    });
    context->save_for_backward({gradient});
    return torch::scalar_tensor(sum / static_cast<double>(n * d), x.options());
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    return {context->get_saved_variables()[0] * upstream[0], torch::Tensor(), torch::Tensor()};
  }
};

class Frobenius : public torch::autograd::Function<Frobenius> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x) {
    const auto rows = x.contiguous();
    const auto norm = sum_of_squares(rows).sqrt().to(x.scalar_type());
    context->save_for_backward({rows, norm});
    return norm;
  }
  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    if (saved[1].item<double>() == 0) return {torch::zeros_like(saved[0])};
    return {saved[0] * (upstream[0] / saved[1])};
  }
};

}  // namespace

torch::Tensor bpr_margins(const torch::Tensor& u, const torch::Tensor& p, const torch::Tensor& n) {
  const int64_t batch = u.size(0), d = u.size(1), k = batch > 0 ? n.size(0) / batch : 1;
  const auto positive = (u * p).sum(1, true);
  return positive - (u.unsqueeze(1) * n.reshape({batch, k, d})).sum(2);
}

torch::Tensor bpr_loss_composed(const torch::Tensor& u, const torch::Tensor& p,
                                const torch::Tensor& n) {
  const auto margins = bpr_margins(u, p, n);
  return -torch::log_sigmoid(margins).sum() /
         static_cast<double>(std::max<int64_t>(1, margins.numel()));
}

torch::Tensor cosine_loss(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& w) {
  TORCH_CHECK(a.dim() == 2 && a.sizes() == b.sizes() && w.dim() == 1 && w.size(0) == a.size(0),
              "cosine_loss wants a, b [n, d] and w [n], got ", a.sizes(), " ", b.sizes(), " ",
              w.sizes());
  if (composed(a)) return cosine_loss_composed(a, b, w);
  return Cosine::apply(a, b, w);
}

torch::Tensor cosine_loss_composed(const torch::Tensor& a, const torch::Tensor& b,
                                   const torch::Tensor& w) {
  // The norm's own slope at 0 is 0, a root's is not finite.
  const auto norm = [](const torch::Tensor& x) { return torch::linalg_vector_norm(x, 2, {1}); };
  const auto norms = (norm(a) * norm(b)).clamp_min(kEps);
  return (w.detach().to(a.scalar_type()) * (1 - (a * b).sum(1) / norms)).sum();
}

torch::Tensor l2_rows(const std::vector<torch::Tensor>& rows, int64_t batch_size) {
  torch::Tensor sum;
  for (const auto& x : rows) sum = sum.defined() ? sum + x.square().sum() : x.square().sum();
  return sum / (2.0 * static_cast<double>(batch_size));
}

torch::Tensor norm_rows(const std::vector<torch::Tensor>& rows, int64_t batch_size) {
  torch::Tensor sum;
  for (const auto& x : rows) sum = sum.defined() ? sum + frobenius_norm(x) : frobenius_norm(x);
  return sum / static_cast<double>(batch_size);
}

torch::Tensor mean_square(const torch::Tensor& x, const torch::Tensor& y) {
  if (composed(x)) return mean_square_composed(x, y);
  return MeanApart::apply(x, y, true);
}
torch::Tensor mean_square_composed(const torch::Tensor& x, const torch::Tensor& y) {
  return (x - y.detach()).square().mean();
}
torch::Tensor mean_distance(const torch::Tensor& x, const torch::Tensor& y) {
  if (composed(x)) return mean_distance_composed(x, y);
  return MeanApart::apply(x, y, false);
}
torch::Tensor mean_distance_composed(const torch::Tensor& x, const torch::Tensor& y) {
  return (x - y.detach()).abs().mean();
}

torch::Tensor sum_of_squares(const torch::Tensor& x, const torch::Tensor& counts) {
  if (composed(x)) return sum_of_squares_composed(x, counts);
  const auto rows = x.contiguous();
  const int64_t n = rows.size(0), d = n > 0 ? rows.numel() / n : 0;
  const auto squares = torch::zeros({n}, torch::kFloat64);
  by_type(rows, [&](auto type) {
    using T = decltype(type);
    const T* row = rows.const_data_ptr<T>();
    const int64_t* count = counts.defined() ? counts.const_data_ptr<int64_t>() : nullptr;
    double* to = squares.mutable_data_ptr<double>();
    parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t times = count ? count[r] : 1;
        if (times == 0) continue;
        to[r] = static_cast<double>(times) * static_cast<double>(dot(row + r * d, row + r * d, d));
      }
    });
  });
  return squares.sum();
}

torch::Tensor sum_of_squares_composed(const torch::Tensor& x, const torch::Tensor& counts) {
  const auto squares = x.detach().to(torch::kFloat64).square();
  if (!counts.defined()) return squares.sum();
  return (squares.flatten(1).sum(1) * counts).sum();
}

torch::Tensor frobenius_norm(const torch::Tensor& x) {
  if (composed(x)) return frobenius_norm_composed(x);
  return Frobenius::apply(x);
}
torch::Tensor frobenius_norm_composed(const torch::Tensor& x) {
  return torch::linalg_vector_norm(x.flatten());
}

}  // namespace tessera

#include "tessera/nn/correlation.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/sequence_kernels.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr double kEps = 1e-8;

int64_t grain_of(int64_t width) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width)); }

class PairProducts : public torch::autograd::Function<PairProducts> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& u_in,
                               const torch::Tensor& i_in, const torch::Tensor& j_in) {
    const auto u = u_in.contiguous(), i = i_in.contiguous(), j = j_in.contiguous();
    const int64_t n = i.size(0), d = u.size(1);
    const auto out = torch::empty({n}, u.options());
    by_type(u, [&](auto type) {
      using T = decltype(type);
      const T* rows = u.const_data_ptr<T>();
      const int64_t *is = i.const_data_ptr<int64_t>(), *js = j.const_data_ptr<int64_t>();
      T* to = out.mutable_data_ptr<T>();
      parallel_for(0, n, grain_of(d), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          to[p] = kernels::dot(rows + is[p] * d, rows + js[p] * d, d);
        }
      });
    });
    context->save_for_backward({u, i, j});
    return out;
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &u = saved[0], &i = saved[1], &j = saved[2];
    const auto g = upstream[0].contiguous();
    const int64_t n = i.size(0), d = u.size(1);
    const auto out = torch::zeros_like(u);
    by_type(u, [&](auto type) {
      using T = decltype(type);
      const T* rows = u.const_data_ptr<T>();
      const T* gs = g.const_data_ptr<T>();
      const int64_t *is = i.const_data_ptr<int64_t>(), *js = j.const_data_ptr<int64_t>();
      T* to = out.mutable_data_ptr<T>();
      parallel_for(0, u.size(0), grain_of(d), [&](int64_t begin, int64_t end) {
        for (int64_t p = 0; p < n; ++p) {
          if (is[p] >= begin && is[p] < end) {
            kernels::add_scaled(gs[p], rows + js[p] * d, to + is[p] * d, d);
          }
          if (js[p] >= begin && js[p] < end) {
            kernels::add_scaled(gs[p], rows + is[p] * d, to + js[p] * d, d);
          }
        }
      });
    });
    return {out, torch::Tensor(), torch::Tensor()};
  }
};

/// Sum over pairs of the cross-entropy; the gradients of all five inputs are formed with it.
class CodeLoss : public torch::autograd::Function<CodeLoss> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& e_in,
                               const torch::Tensor& w_hidden_in, const torch::Tensor& b_hidden_in,
                               const torch::Tensor& w_out_in, const torch::Tensor& b_out_in,
                               const torch::Tensor& i_in, const torch::Tensor& j_in,
                               const torch::Tensor& codes_in, int64_t block) {
    const auto e = e_in.contiguous(), i = i_in.contiguous(), j = j_in.contiguous();
    const auto codes = codes_in.contiguous();
    const auto &w_hidden = w_hidden_in, &w_out = w_out_in;
    const int64_t n = i.size(0), d = e.size(1), n_codes = w_out.size(0);
    const auto to_e = torch::zeros_like(e);
    auto to_w_hidden = torch::zeros_like(w_hidden), to_b_hidden = torch::zeros_like(b_hidden_in);
    auto to_w_out = torch::zeros_like(w_out), to_b_out = torch::zeros_like(b_out_in);
    double total = 0;
    by_type(e, [&](auto type) {
      using T = decltype(type);
      const T* rows = e.const_data_ptr<T>();
      const int64_t *is = i.const_data_ptr<int64_t>(), *js = j.const_data_ptr<int64_t>();
      const int64_t* code = codes.const_data_ptr<int64_t>();
      T* to = to_e.mutable_data_ptr<T>();
      for (int64_t first = 0; first < n; first += block) {
        const int64_t size = std::min(block, n - first);
        const auto delta = torch::empty({size, d}, e.options().requires_grad(false));
        T* deltas = delta.mutable_data_ptr<T>();
        parallel_for(0, size, grain_of(d), [&](int64_t begin, int64_t end) {
          for (int64_t p = begin; p < end; ++p) {
            const T *a = rows + is[first + p] * d, *b = rows + js[first + p] * d;
            for (int64_t c = 0; c < d; ++c) deltas[p * d + c] = std::abs(a[c] - b[c]);
          }
        });
        const auto hidden = torch::addmm(b_hidden_in, delta, w_hidden.t()).relu_();
        auto logits = torch::addmm(b_out_in, hidden, w_out.t());
        T* z = logits.mutable_data_ptr<T>();
        std::vector<double> losses(static_cast<size_t>(size));
        parallel_for(0, size, grain_of(n_codes), [&](int64_t begin, int64_t end) {
          for (int64_t p = begin; p < end; ++p) {
            T* row = z + p * n_codes;
            const int64_t y = code[first + p];
            const double own = static_cast<double>(row[y]);
            const auto s = kernels::exp_row(row, n_codes);
            losses[static_cast<size_t>(p)] =
                static_cast<double>(s.max) + std::log(static_cast<double>(s.sum)) - own;
            const T inverse = T(1) / s.sum;
            for (int64_t k = 0; k < n_codes; ++k) row[k] *= inverse;
            row[y] -= 1;
          }
        });
        for (const double loss : losses) total += loss;
        to_w_out.addmm_(logits.t(), hidden);
        to_b_out.add_(logits.sum(0));
        const auto to_hidden = torch::mm(logits, w_out).mul_(hidden > 0);
        to_w_hidden.addmm_(to_hidden.t(), delta);
        to_b_hidden.add_(to_hidden.sum(0));
        const auto to_delta = torch::mm(to_hidden, w_hidden);
        const T* back = to_delta.const_data_ptr<T>();
        parallel_for(0, e.size(0), grain_of(d), [&](int64_t begin, int64_t end) {
          for (int64_t p = 0; p < size; ++p) {
            const int64_t a = is[first + p], b = js[first + p];
            const bool to_a = a >= begin && a < end, to_b = b >= begin && b < end;
            if (!to_a && !to_b) continue;
            const T *x = rows + a * d, *y = rows + b * d, *g = back + p * d;
            for (int64_t c = 0; c < d; ++c) {
              const T signed_g = x[c] > y[c] ? g[c] : x[c] < y[c] ? -g[c] : T(0);
              if (to_a) to[a * d + c] += signed_g;
              if (to_b) to[b * d + c] -= signed_g;
            }
          }
        });
      }
    });
    context->save_for_backward({to_e, to_w_hidden, to_b_hidden, to_w_out, to_b_out});
    return torch::full({}, total, e.options().requires_grad(false));
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    auto out = context->get_saved_variables();
    for (auto& g : out) g = g * upstream[0];
    out.resize(9);
    return out;
  }
};

double squared_sizes(const ItemPairs& pairs) { return pairs.sizes.square().sum().item<double>(); }

torch::Tensor head_logits(const torch::Tensor& delta, const CodeHead& head) {
  return torch::addmm(head.b_out, torch::addmm(head.b_hidden, delta, head.w_hidden.t()).relu(),
                      head.w_out.t());
}

/// The weight of one pair (stored once), and the diagonal's share of the loss.
double pair_weight(const ItemPairs& pairs) {
  if (pairs.in_batch) return 1.0 / static_cast<double>(std::max<int64_t>(1, pairs.i.size(0)));
  const double squares = squared_sizes(pairs);
  return squares > 0 ? 2 / squares : 0;
}

torch::Tensor diagonal_loss(const torch::Tensor& e, const ItemPairs& pairs,
                            const torch::Tensor& diagonal_codes, const CodeHead& head) {
  if (pairs.in_batch || pairs.diagonal.numel() == 0) return torch::zeros({}, e.options());
  // delta = 0: the same logits for every item, so that only how often a code occurs counts.
  const auto logits = head_logits(torch::zeros({1, e.size(1)}, e.options()), head);
  const auto counts =
      torch::zeros({head.w_out.size(0)}, e.options())
          .index_add(0, diagonal_codes, torch::ones(diagonal_codes.sizes(), e.options()));
  return -(torch::log_softmax(logits, 1).squeeze(0) * counts).sum() / squared_sizes(pairs);
}

}  // namespace

Correlation::Correlation(const torch::Tensor& codes_in, const torch::Tensor& present,
                         int64_t n_parts, bool center)
    : n_parts_(n_parts), present_(present.contiguous()) {
  const torch::NoGradGuard no_grad;
  TORCH_CHECK(codes_in.dim() == 2 && codes_in.size(1) % n_parts == 0,
              "codes must be [N, d] with d a multiple of ", n_parts);
  torch::Tensor codes = codes_in.to(torch::kFloat);
  const auto mask = present_.to(torch::kFloat).unsqueeze(1);
  if (center) {
    codes = (codes - (codes * mask).sum(0) / mask.sum().clamp_min(1)) * mask;
  }
  const int64_t n = codes.size(0), d = codes.size(1);
  const auto parts = codes.view({n, n_parts, d / n_parts});
  const auto norms = torch::linalg_vector_norm(parts, 2, {2});
  const auto whole = torch::linalg_vector_norm(codes, 2, {1}).unsqueeze(1);
  units_ = torch::where(norms.unsqueeze(2) > 0, parts / norms.unsqueeze(2), torch::zeros({}))
               .reshape({n, d})
               .contiguous();
  shares_ = torch::where(whole > 0, norms / whole, torch::zeros({})).contiguous();
}

Correlation::Correlation(const torch::Tensor& units, const torch::Tensor& shares,
                         const torch::Tensor& present)
    : n_parts_(shares.size(1)),
      units_(units.contiguous()),
      shares_(shares.contiguous()),
      present_(present.contiguous()) {}

void Correlation::pair(int64_t i, int64_t j, float* rho, float* r) const {
  const int64_t d = units_.size(1), width = d / n_parts_;
  const float* a = units_.const_data_ptr<float>() + i * d;
  const float* b = units_.const_data_ptr<float>() + j * d;
  const float* wa = shares_.const_data_ptr<float>() + i * n_parts_;
  const float* wb = shares_.const_data_ptr<float>() + j * n_parts_;
  float sum = 0;
  for (int64_t s = 0; s < n_parts_; ++s) {
    rho[s] = kernels::dot(a + s * width, b + s * width, width);
    sum += wa[s] * wb[s] * rho[s];
  }
  *r = sum;
}

torch::Tensor Correlation::rho_composed(const torch::Tensor& i, const torch::Tensor& j) const {
  const auto sub_vectors = [&](const torch::Tensor& at) {
    return units_.index_select(0, at).view({at.size(0), n_parts_, -1});
  };
  return (sub_vectors(i) * sub_vectors(j)).sum(2);
}

torch::Tensor Correlation::rho(const torch::Tensor& i_in, const torch::Tensor& j_in) const {
  if (composed(units_)) return rho_composed(i_in, j_in);
  const auto i = i_in.contiguous(), j = j_in.contiguous();
  const auto out = torch::empty({i.size(0), n_parts_});
  const int64_t *is = i.const_data_ptr<int64_t>(), *js = j.const_data_ptr<int64_t>();
  float* to = out.mutable_data_ptr<float>();
  parallel_for(0, i.size(0), grain_of(units_.size(1)), [&](int64_t begin, int64_t end) {
    float r = 0;
    for (int64_t p = begin; p < end; ++p) pair(is[p], js[p], to + p * n_parts_, &r);
  });
  return out;
}

Correlation::Signal Correlation::signal(const torch::Tensor& i_in,
                                        const torch::Tensor& j_in) const {
  if (composed(units_)) return signal_composed(i_in, j_in);
  const auto i = i_in.contiguous(), j = j_in.contiguous();
  const int64_t n = i.size(0), n_codes = centroids_.size(0);
  Signal out{torch::empty({n}), torch::empty({n}, torch::kInt64)};
  const int64_t *is = i.const_data_ptr<int64_t>(), *js = j.const_data_ptr<int64_t>();
  const float* columns = columns_.const_data_ptr<float>();
  float* rs = out.r.mutable_data_ptr<float>();
  int64_t* codes = out.codes.mutable_data_ptr<int64_t>();
  parallel_for(0, n, grain_of(units_.size(1)), [&](int64_t begin, int64_t end) {
    std::vector<float> rho(static_cast<size_t>(n_parts_)), scratch(static_cast<size_t>(n_codes));
    for (int64_t p = begin; p < end; ++p) {
      pair(is[p], js[p], rho.data(), rs + p);
      codes[p] = kernels::nearest(rho.data(), n_parts_, columns, n_codes, scratch.data());
    }
  });
  return out;
}

Correlation::Signal Correlation::signal_composed(const torch::Tensor& i,
                                                 const torch::Tensor& j) const {
  constexpr int64_t kBlock = 4096;  // pairs held to all centroids at once
  const auto cosines = rho_composed(i, j);
  const auto weights = shares_.index_select(0, i) * shares_.index_select(0, j);
  std::vector<torch::Tensor> codes;
  for (const auto& rows : cosines.split(kBlock)) {
    codes.push_back((rows.unsqueeze(1) - centroids_).square().sum(2).argmin(1));
  }
  return {(weights * cosines).sum(1), torch::cat(codes)};
}

std::vector<int64_t> Correlation::nearest(const torch::Tensor& rho) const {
  const int64_t n = rho.size(0), n_codes = centroids_.size(0);
  std::vector<int64_t> out(static_cast<size_t>(n));
  const float* from = rho.const_data_ptr<float>();
  const float* columns = columns_.const_data_ptr<float>();
  parallel_for(0, n, 512, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(n_codes));
    for (int64_t p = begin; p < end; ++p) {
      out[static_cast<size_t>(p)] =
          kernels::nearest(from + p * n_parts_, n_parts_, columns, n_codes, scratch.data());
    }
  });
  return out;
}

void Correlation::set_centroids(const torch::Tensor& centroids) {
  TORCH_CHECK(centroids.dim() == 2 && centroids.size(1) == n_parts_, "centroids must be [K, ",
              n_parts_, "]");
  centroids_ = centroids.to(torch::kFloat).contiguous();
  columns_ = centroids_.t().contiguous();
  const int64_t n = units_.size(0);
  const auto all = torch::arange(n, torch::kInt64);
  diagonal_ = signal(all, all).codes;
}

void Correlation::fit(int64_t n_codes, int64_t n_samples, const Random& random) {
  std::vector<int64_t> items;
  for (int64_t item = 0; item < present_.size(0); ++item) {
    if (present_.const_data_ptr<bool>()[item]) items.push_back(item);
  }
  const auto n_present = static_cast<int64_t>(items.size());
  TORCH_CHECK(n_present >= 2, "a codebook needs two items with the modality, found ", n_present);
  std::vector<int64_t> is, js;
  if (n_present * (n_present - 1) / 2 <= n_samples) {
    for (int64_t a = 0; a < n_present; ++a) {
      for (int64_t b = a + 1; b < n_present; ++b) {
        is.push_back(items[static_cast<size_t>(a)]);
        js.push_back(items[static_cast<size_t>(b)]);
      }
    }
  } else {
    for (int64_t p = 0; p < n_samples; ++p) {
      uint32_t draw = 0;
      const auto row = static_cast<uint64_t>(p);
      const uint32_t a = random.below(static_cast<uint32_t>(n_present), 0, row, draw);
      uint32_t b = random.below(static_cast<uint32_t>(n_present - 1), 0, row, draw);
      b += b >= a;
      is.push_back(items[a]);
      js.push_back(items[b]);
    }
  }
  const auto i = torch::tensor(is, torch::kInt64), j = torch::tensor(js, torch::kInt64);
  const auto sample = rho(i, j);
  const int64_t n = sample.size(0), d = n_parts_;
  const float* x = sample.const_data_ptr<float>();
  n_codes = std::min(n_codes, n);

  // k-means++: the next centroid with probability ~ squared distance to the nearest so far.
  torch::Tensor points = torch::empty({n_codes, d});
  float* point = points.mutable_data_ptr<float>();
  std::vector<float> distance(static_cast<size_t>(n), std::numeric_limits<float>::max());
  uint32_t draw = 0;
  int64_t chosen = random.below(static_cast<uint32_t>(n), 1, 0, draw);
  for (int64_t k = 0; k < n_codes; ++k) {
    std::copy(x + chosen * d, x + (chosen + 1) * d, point + k * d);
    const float* last = point + k * d;
    parallel_for(0, n, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        float sum = 0;
        for (int64_t s = 0; s < d; ++s) {
          const float gap = x[p * d + s] - last[s];
          sum += gap * gap;
        }
        auto& least = distance[static_cast<size_t>(p)];
        least = std::min(least, sum);
      }
    });
    const double total = std::accumulate(distance.begin(), distance.end(), 0.0);
    double left = random.uniform(2, static_cast<uint64_t>(k), 0) * total;
    chosen = n - 1;
    for (int64_t p = 0; p < n; ++p) {
      left -= distance[static_cast<size_t>(p)];
      if (left < 0) {
        chosen = p;
        break;
      }
    }
  }
  double before = std::numeric_limits<double>::infinity();
  std::vector<int64_t> code;
  for (int round = 0; round < 100; ++round) {
    centroids_ = points;
    columns_ = points.t().contiguous();
    code = nearest(sample);
    std::vector<double> sums(static_cast<size_t>(n_codes * d));
    std::vector<int64_t> counts(static_cast<size_t>(n_codes));
    double inertia = 0;
    int64_t farthest = 0;
    double most = -1;
    for (int64_t p = 0; p < n; ++p) {
      const int64_t k = code[static_cast<size_t>(p)];
      ++counts[static_cast<size_t>(k)];
      double gap = 0;
      for (int64_t s = 0; s < d; ++s) {
        const double value = x[p * d + s], off = value - point[k * d + s];
        sums[static_cast<size_t>(k * d + s)] += value;
        gap += off * off;
      }
      inertia += gap;
      if (gap > most) {
        most = gap;
        farthest = p;
      }
    }
    points = torch::empty({n_codes, d});
    point = points.mutable_data_ptr<float>();
    for (int64_t k = 0; k < n_codes; ++k) {
      for (int64_t s = 0; s < d; ++s) {
        const int64_t count = counts[static_cast<size_t>(k)];
        point[k * d + s] = count > 0 ? static_cast<float>(sums[static_cast<size_t>(k * d + s)] /
                                                          static_cast<double>(count))
                                     : x[farthest * d + s];
      }
    }
    if (before - inertia < 1e-4 * before && std::isfinite(before)) break;
    before = inertia;
  }
  std::vector<int64_t> order(static_cast<size_t>(n_codes));
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto means = points.mean(1).contiguous();
  const float* mean_of = means.const_data_ptr<float>();
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return mean_of[a] < mean_of[b]; });
  set_centroids(points.index_select(0, torch::tensor(order, torch::kInt64)));

  const Signal found = signal(i, j);
  const auto r = found.r.to(torch::kFloat64);
  mean = r.mean().item<double>();
  spread = r.std(/*unbiased=*/false).item<double>();
  const auto share =
      torch::bincount(found.codes, {}, n_codes).to(torch::kFloat64) / static_cast<double>(n);
  largest_share = share.max().item<double>();
  entropy = -(share * share.clamp_min(1e-300).log()).sum().item<double>();
}

torch::Tensor pair_products(const torch::Tensor& u, const torch::Tensor& i,
                            const torch::Tensor& j) {
  if (composed(u)) return row_dots_composed(u, u, i, j);
  return PairProducts::apply(u, i, j);
}

torch::Tensor skd_loss(const torch::Tensor& z, const ItemPairs& pairs, const torch::Tensor& r_in,
                       const SkdOptions& options) {
  const int64_t n_pairs = pairs.i.size(0);
  if (n_pairs == 0) return torch::zeros({}, z.options());
  const auto u = z / torch::linalg_vector_norm(z, 2, {1}, true).clamp_min(kEps);
  auto student = pair_products(u, pairs.i, pairs.j);
  auto r = r_in.to(z.scalar_type());
  const double tau2 = options.tau * options.tau;
  const auto n_rows = static_cast<double>(std::max<int64_t>(1, pairs.sizes.size(0)));
  const double mean_size = pairs.sizes.sum().item<double>() / n_rows;
  if (options.paper) {
    if (options.standardise) {
      r = (r - options.mean) / options.spread;
      student = (student - options.mean) / options.spread;
    }
    const auto squares =
        (torch::sigmoid(r / options.tau) - torch::sigmoid(student / options.tau)).square();
    if (pairs.in_batch) return squares.mean();
    return 2 * squares.sum() / squared_sizes(pairs);
  }
  const auto squares = (student - r).square();
  if (pairs.in_batch) {
    // Rows that have at most one item of the modality on average are taken to have no pair.
    if (mean_size <= 1) return torch::zeros({}, z.options());
    return torch::sqrt(mean_size * (mean_size - 1) * squares.mean() / tau2 +
                       kEps * mean_size * mean_size);
  }
  const auto by_row =
      torch::zeros({pairs.sizes.size(0)}, z.options()).index_add(0, pairs.row, squares) *
      (2 / tau2);
  const auto sizes = pairs.sizes.to(z.scalar_type());
  const auto counts = sizes >= 2;
  // Rows without a pair add 0; the guard keeps the root's slope finite at r^ = r.
  const auto roots = torch::sqrt(
      by_row + torch::where(counts, kEps * sizes * sizes, torch::ones({}, z.options())));
  return torch::where(counts, roots, torch::zeros({}, z.options())).sum() / n_rows;
}

torch::Tensor ckd_loss(const torch::Tensor& e, const ItemPairs& pairs, const torch::Tensor& codes,
                       const torch::Tensor& diagonal_codes, const CodeHead& head, int64_t block) {
  if (composed(e)) return ckd_loss_composed(e, pairs, codes, diagonal_codes, head);
  auto loss = diagonal_loss(e, pairs, diagonal_codes, head);
  if (pairs.i.size(0) > 0) {
    loss = loss + pair_weight(pairs) * CodeLoss::apply(e, head.w_hidden, head.b_hidden, head.w_out,
                                                       head.b_out, pairs.i, pairs.j, codes, block);
  }
  return loss;
}

torch::Tensor ckd_loss_composed(const torch::Tensor& e, const ItemPairs& pairs,
                                const torch::Tensor& codes, const torch::Tensor& diagonal_codes,
                                const CodeHead& head) {
  const auto delta = (e.index_select(0, pairs.i) - e.index_select(0, pairs.j)).abs();
  const auto own =
      torch::log_softmax(head_logits(delta, head), 1).gather(1, codes.unsqueeze(1)).sum();
  return diagonal_loss(e, pairs, diagonal_codes, head) - pair_weight(pairs) * own;
}

Mixed gate(const std::vector<torch::Tensor>& inputs, const std::vector<torch::Tensor>& present,
           const torch::Tensor& w1, const torch::Tensor& b1, const torch::Tensor& w2,
           const torch::Tensor& b2) {
  std::vector<torch::Tensor> energies;
  for (size_t k = 0; k < inputs.size(); ++k) {
    const auto hidden = torch::addmm(b1, inputs[k], w1.t()).relu();
    auto energy = torch::mm(hidden, w2.view({-1, 1}));
    if (b2.defined()) energy = energy + b2;
    if (present[k].defined()) {
      energy = energy.masked_fill(present[k].logical_not().unsqueeze(1),
                                  -std::numeric_limits<double>::infinity());
    }
    energies.push_back(energy);
  }
  Mixed out;
  out.alpha = torch::softmax(torch::cat(energies, 1), 1);
  for (size_t k = 0; k < inputs.size(); ++k) {
    const auto part = out.alpha.narrow(1, static_cast<int64_t>(k), 1) * inputs[k];
    out.h = out.h.defined() ? out.h + part : part;
  }
  return out;
}

RowGraphs row_graphs(const torch::Tensor& items_in, const torch::Tensor& offsets) {
  const auto items = items_in.contiguous();
  const int64_t n_rows = offsets.size(0) - 1;
  const auto* offset = offsets.const_data_ptr<int64_t>();
  const auto* item_of = items.const_data_ptr<int64_t>();
  // The place of every slot among its row's nodes.
  std::vector<int64_t> places(static_cast<size_t>(items.numel())), nodes, begins = {0};
  int64_t widest = 1;
  for (int64_t row = 0; row < n_rows; ++row) {
    std::vector<int64_t> own;
    for (int64_t p = offset[row]; p < offset[row + 1]; ++p) {
      const auto at = std::find(own.begin(), own.end(), item_of[p]);
      places[static_cast<size_t>(p)] = at - own.begin();
      if (at == own.end()) own.push_back(item_of[p]);
    }
    nodes.insert(nodes.end(), own.begin(), own.end());
    begins.push_back(static_cast<int64_t>(nodes.size()));
    widest = std::max(widest, static_cast<int64_t>(own.size()));
  }
  RowGraphs out;
  out.relation = torch::zeros({n_rows, widest, widest}, torch::kInt64);
  out.padded = torch::zeros({n_rows, widest}, torch::kInt64);
  auto* relations = out.relation.mutable_data_ptr<int64_t>();
  auto* pad = out.padded.mutable_data_ptr<int64_t>();
  std::vector<int64_t> kept, last, before;
  for (int64_t row = 0; row < n_rows; ++row) {
    int64_t* own = relations + row * widest * widest;
    const int64_t begin = begins[static_cast<size_t>(row)];
    const int64_t size = begins[static_cast<size_t>(row) + 1] - begin;
    const auto mark = [&](int64_t u, int64_t v, int64_t kind) {
      int64_t& cell = own[u * widest + v];
      cell = cell == 0 || cell == kind ? kind : 4;
    };
    for (int64_t p = offset[row] + 1; p < offset[row + 1]; ++p) {
      const int64_t u = places[static_cast<size_t>(p - 1)], v = places[static_cast<size_t>(p)];
      if (u == v) continue;
      mark(u, v, 2);
      mark(v, u, 3);
    }
    for (int64_t t = 0; t < widest; ++t) {
      std::fill(own + t * widest + size, own + (t + 1) * widest, -1);
      own[t * widest + t] = 1;
    }
    for (int64_t t = 0; t < size; ++t) {
      pad[row * widest + t] = nodes[static_cast<size_t>(begin + t)];
      kept.push_back(row * widest + t);
    }
    const int64_t end = offset[row + 1] - 1, previous = std::max(offset[row], end - 1);
    last.push_back(begin + places[static_cast<size_t>(end)]);
    before.push_back(begin + places[static_cast<size_t>(previous)]);
  }
  out.nodes = torch::tensor(nodes, torch::kInt64);
  out.kept = torch::tensor(kept, torch::kInt64);
  out.last = torch::tensor(last, torch::kInt64);
  out.before = torch::tensor(before, torch::kInt64);
  return out;
}

torch::Tensor relational_attention(const torch::Tensor& h, const torch::Tensor& relation,
                                   const torch::Tensor& q, const torch::Tensor& amp,
                                   const std::function<torch::Tensor(const torch::Tensor&)>& drop,
                                   bool drop_scores) {
  torch::Tensor scores;
  for (int64_t r = 0; r < 4; ++r) {
    const auto s = torch::leaky_relu(torch::bmm(h * q[r], h.transpose(1, 2)), 0.1) * amp[r];
    const auto part = s * (relation == r + 1).to(s.scalar_type());
    scores = scores.defined() ? scores + part : part;
  }
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  if (drop_scores) {
    // Finite, so that a dropped one becomes 0 and takes part.
    scores = drop(scores.masked_fill(relation <= 0, -9e15)).masked_fill(relation < 0, kNever);
    return torch::bmm(torch::softmax(scores, 2), h);
  }
  scores = scores.masked_fill(relation <= 0, kNever);
  return torch::bmm(drop(torch::softmax(scores, 2)), h);
}

double pearson(const torch::Tensor& a_in, const torch::Tensor& b_in) {
  const auto a = a_in.to(torch::kFloat64) - a_in.to(torch::kFloat64).mean();
  const auto b = b_in.to(torch::kFloat64) - b_in.to(torch::kFloat64).mean();
  const double scale = std::sqrt(a.square().sum().item<double>() * b.square().sum().item<double>());
  return scale > 0 ? (a * b).sum().item<double>() / scale : 0;
}

}  // namespace tessera

#include "tessera/nn/sequence_encoder.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "tessera/ops/by_type.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/sequence_kernels.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

int64_t grain_of(int64_t width) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width)); }

/// The key of a mask and the 16-bit limit below which a value is dropped.
struct Mask {
  std::array<uint32_t, 2> key = {};
  uint32_t limit = 0;
  double scale = 1;
};

Mask mask_of(double rate, const Pass& pass, const std::string& name) {
  if (!pass.training || rate <= 0) return {};
  TORCH_CHECK(rate < 1, "a dropout rate lies in [0, 1), got ", rate);
  const auto words =
      pass.random.stream("drop." + name).block(static_cast<uint64_t>(pass.step), 0, 0);
  const auto limit = static_cast<uint32_t>(std::llround(rate * 0x1p16));
  return {{words[0], words[1]}, limit, 1 / (1 - limit * 0x1p-16)};
}

class Dropout : public torch::autograd::Function<Dropout> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x_in, Mask mask) {
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
          kernels::keep_row(mask.key, static_cast<uint64_t>(r), mask.limit, keep + r * width,
                            width);
          kernels::masked(from + r * width, keep + r * width, static_cast<T>(mask.scale),
                          to + r * width, width);
        }
      });
    });
    context->save_for_backward({kept});
    context->saved_data["scale"] = mask.scale;
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

/// Neighbouring rows that share one padded product.
struct Chunk {
  int64_t begin, end, longest;
};

std::vector<Chunk> chunks_of(const int64_t* offsets, int64_t n_rows, int64_t n_heads) {
  constexpr int64_t kMost = int64_t{1} << 20;  // entries of a chunk's probabilities
  std::vector<Chunk> out;
  int64_t used = 0;
  for (int64_t row = 0; row < n_rows; ++row) {
    const int64_t length = offsets[row + 1] - offsets[row];
    if (!out.empty()) {
      Chunk& chunk = out.back();
      const int64_t longest = std::max(chunk.longest, length);
      const int64_t padded = (row + 1 - chunk.begin) * longest * longest;
      used += length * length;
      if (padded * n_heads <= kMost && (padded <= 2 * used || padded < (1 << 14))) {
        chunk.end = row + 1;
        chunk.longest = longest;
        continue;
      }
    }
    out.push_back({row, row + 1, length});
    used = length * length;
  }
  return out;
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& q_in,
                               const torch::Tensor& k_in, const torch::Tensor& v_in,
                               const torch::Tensor& offsets_in, int64_t n_heads, bool causal,
                               Mask mask, bool with_gradient) {
    const auto q = q_in.contiguous(), k = k_in.contiguous(), v = v_in.contiguous();
    const auto offsets = offsets_in.contiguous();
    const auto out = torch::empty_like(q);
    tensor_list kept = {q, k, v, offsets};
    by_type(q, [&](auto type) {
      using T = decltype(type);
      const Shape<T> s(q, offsets, n_heads, causal);
      for (const Chunk& c : chunks_of(s.offsets, offsets.size(0) - 1, n_heads)) {
        auto p = torch::bmm(s.padded(q, c, s.scale), s.padded(k, c).transpose(1, 2));
        s.softmax(p, c);
        torch::Tensor dropped = p, keep;
        if (mask.limit > 0) {
          keep = torch::zeros(p.sizes(), torch::kUInt8);
          dropped = torch::empty_like(p);
          s.drop(p, c, mask, keep, dropped);
        }
        s.unpad(torch::bmm(dropped, s.padded(v, c)), c, T(1), out);
        if (with_gradient) {
          kept.push_back(p);
          kept.push_back(keep);
        }
      }
    });
    if (with_gradient) context->save_for_backward(kept);
    context->saved_data["heads"] = n_heads;
    context->saved_data["causal"] = causal;
    context->saved_data["scale"] = mask.scale;
    return out;
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2], &offsets = saved[3];
    const int64_t n_heads = context->saved_data["heads"].toInt();
    const double drop_scale = context->saved_data["scale"].toDouble();
    const auto g = upstream[0].contiguous();
    const auto to_q = torch::empty_like(q), to_k = torch::empty_like(q),
               to_v = torch::empty_like(q);
    by_type(q, [&](auto type) {
      using T = decltype(type);
      const Shape<T> s(q, offsets, n_heads, context->saved_data["causal"].toBool());
      size_t at = 4;
      for (const Chunk& c : chunks_of(s.offsets, offsets.size(0) - 1, n_heads)) {
        const auto &p = saved[at], &keep = saved[at + 1];
        at += 2;
        torch::Tensor dropped = p;
        if (keep.defined()) {
          dropped = torch::empty_like(p);
          flat_mask<T>(p, keep, drop_scale, dropped);
        }
        const auto gp = s.padded(g, c);
        s.unpad(torch::bmm(dropped.transpose(1, 2), gp), c, T(1), to_v);
        auto to_p = torch::bmm(gp, s.padded(v, c).transpose(1, 2));
        if (keep.defined()) flat_mask<T>(to_p, keep, drop_scale, to_p);
        s.softmax_back(p, c, to_p);
        s.unpad(torch::bmm(to_p, s.padded(k, c)), c, s.scale, to_q);
        s.unpad(torch::bmm(to_p.transpose(1, 2), s.padded(q, c)), c, s.scale, to_k);
      }
    });
    const torch::Tensor none;
    return {to_q, to_k, to_v, none, none, none, none, none};
  }

 private:
  template <typename T>
  static void flat_mask(const torch::Tensor& x, const torch::Tensor& keep, double scale,
                        const torch::Tensor& out) {
    const T* from = x.const_data_ptr<T>();
    const uint8_t* kept = keep.const_data_ptr<uint8_t>();
    T* to = out.mutable_data_ptr<T>();
    parallel_for(0, x.numel(), 8192, [&](int64_t begin, int64_t end) {
      kernels::masked(from + begin, kept + begin, static_cast<T>(scale), to + begin, end - begin);
    });
  }

  /// The loops between the products. A padded tensor is [rows * heads, longest, width or longest].
  template <typename T>
  struct Shape {
    Shape(const torch::Tensor& x, const torch::Tensor& offsets_in, int64_t n_heads, bool causal)
        : offsets(offsets_in.const_data_ptr<int64_t>()),
          d(x.size(1)),
          n_heads(n_heads),
          width(d / n_heads),
          causal(causal),
          scale(static_cast<T>(1 / std::sqrt(static_cast<double>(width)))),
          options(x.options().requires_grad(false)) {}

    int64_t length(int64_t row) const { return offsets[row + 1] - offsets[row]; }

    torch::Tensor padded(const torch::Tensor& x, const Chunk& c, T factor = T(1)) const {
      auto out = torch::empty({(c.end - c.begin) * n_heads, c.longest, width}, options);
      const T* from = x.const_data_ptr<T>();
      T* to = out.mutable_data_ptr<T>();
      each(c, [&](int64_t row, int64_t head, int64_t index) {
        const int64_t n = length(row);
        for (int64_t t = 0; t < c.longest; ++t) {
          T* here = to + (index * c.longest + t) * width;
          const T* there = from + (offsets[row] + t) * d + head * width;
          if (t >= n) {
            std::fill(here, here + width, T(0));
          } else {
            for (int64_t i = 0; i < width; ++i) here[i] = factor * there[i];
          }
        }
      });
      return out;
    }

    void unpad(const torch::Tensor& x, const Chunk& c, T factor, const torch::Tensor& out) const {
      const T* from = x.const_data_ptr<T>();
      T* to = out.mutable_data_ptr<T>();
      each(c, [&](int64_t row, int64_t head, int64_t index) {
        for (int64_t t = 0; t < length(row); ++t) {
          T* here = to + (offsets[row] + t) * d + head * width;
          const T* there = from + (index * c.longest + t) * width;
          for (int64_t i = 0; i < width; ++i) here[i] = factor * there[i];
        }
      });
    }

    int64_t n_keys(int64_t row, int64_t t) const { return causal ? t + 1 : length(row); }

    void softmax(torch::Tensor& p, const Chunk& c) const {
      T* all = p.mutable_data_ptr<T>();
      each(c, [&](int64_t row, int64_t, int64_t index) {
        for (int64_t t = 0; t < c.longest; ++t) {
          T* z = all + (index * c.longest + t) * c.longest;
          const int64_t n = t < length(row) ? n_keys(row, t) : 0;
          if (n > 0) {
            const T inverse = T(1) / kernels::exp_row(z, n).sum;
            for (int64_t j = 0; j < n; ++j) z[j] *= inverse;
          }
          std::fill(z + n, z + c.longest, T(0));
        }
      });
    }

    void drop(const torch::Tensor& p, const Chunk& c, const Mask& mask, const torch::Tensor& keep,
              const torch::Tensor& out) const {
      const T* all = p.const_data_ptr<T>();
      uint8_t* kept = keep.mutable_data_ptr<uint8_t>();
      T* to = out.mutable_data_ptr<T>();
      each(c, [&](int64_t row, int64_t head, int64_t index) {
        for (int64_t t = 0; t < c.longest; ++t) {
          const int64_t at = (index * c.longest + t) * c.longest;
          if (t < length(row)) {
            const auto key_row = static_cast<uint64_t>((offsets[row] + t) * n_heads + head);
            kernels::keep_row(mask.key, key_row, mask.limit, kept + at, n_keys(row, t));
          }
          kernels::masked(all + at, kept + at, static_cast<T>(mask.scale), to + at, c.longest);
        }
      });
    }

    /// g <- p (g - sum p g), row by row.
    void softmax_back(const torch::Tensor& p, const Chunk& c, torch::Tensor& to_p) const {
      const T* all = p.const_data_ptr<T>();
      T* to = to_p.mutable_data_ptr<T>();
      each(c, [&](int64_t row, int64_t, int64_t index) {
        for (int64_t t = 0; t < c.longest; ++t) {
          const T* z = all + (index * c.longest + t) * c.longest;
          T* g = to + (index * c.longest + t) * c.longest;
          const int64_t n = t < length(row) ? n_keys(row, t) : 0;
          T sum = 0;
          for (int64_t j = 0; j < n; ++j) sum += z[j] * g[j];
          for (int64_t j = 0; j < n; ++j) g[j] = z[j] * (g[j] - sum);
          std::fill(g + n, g + c.longest, T(0));
        }
      });
    }

    template <typename Body>  // body(row, head, index of the padded matrix)
    void each(const Chunk& c, const Body& body) const {
      parallel_for(0, (c.end - c.begin) * n_heads, grain_of(c.longest * c.longest),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       body(c.begin + i / n_heads, i % n_heads, i);
                     }
                   });
    }

    const int64_t* offsets;
    int64_t d, n_heads, width;
    bool causal;
    T scale;
    torch::TensorOptions options;
  };
};

/// Which rows are alive at each time step: rows by falling length, so that they are a prefix.
struct TimeSteps {
  explicit TimeSteps(const torch::Tensor& offsets_in) {
    const int64_t* offset = offsets_in.const_data_ptr<int64_t>();
    const int64_t n = offsets_in.size(0) - 1;
    rows.resize(static_cast<size_t>(n));
    std::iota(rows.begin(), rows.end(), int64_t{0});
    std::stable_sort(rows.begin(), rows.end(), [&](int64_t a, int64_t b) {
      return offset[a + 1] - offset[a] > offset[b + 1] - offset[b];
    });
    for (int64_t alive = n, t = 0; alive > 0; ++t) {
      while (alive > 0 && offset[rows[alive - 1] + 1] - offset[rows[alive - 1]] <= t) --alive;
      if (alive == 0) break;
      begin.push_back(begin.empty() ? 0 : begin.back() + n_alive.back());
      n_alive.push_back(alive);
    }
    for (const int64_t row : rows) first.push_back(offset[row]);
  }
  int64_t n_steps() const { return static_cast<int64_t>(n_alive.size()); }

  std::vector<int64_t> rows;     // by falling length
  std::vector<int64_t> first;    // packed place of their first slot
  std::vector<int64_t> n_alive;  // by step
  std::vector<int64_t> begin;    // of the step in time-major order
};

class Gru : public torch::autograd::Function<Gru> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& in_in,
                               const torch::Tensor& w_in, const torch::Tensor& offsets_in) {
    const auto in = in_in.contiguous(), w = w_in.contiguous(), offsets = offsets_in.contiguous();
    const int64_t n = in.size(0), h = w.size(1);
    const TimeSteps steps(offsets);
    const auto options = in.options().requires_grad(false);
    const auto gates = torch::empty({n, 4 * h}, options);  // time-major
    const auto states = torch::empty({n, h}, options);     // time-major
    const auto out = torch::empty({n, h}, options);        // packed
    by_type(in, [&](auto type) {
      using T = decltype(type);
      const T* from = in.const_data_ptr<T>();
      T* gate = gates.mutable_data_ptr<T>();
      T* state = states.mutable_data_ptr<T>();
      T* to = out.mutable_data_ptr<T>();
      const int64_t most = steps.n_alive.empty() ? 0 : steps.n_alive[0];
      auto hidden = torch::empty({most, 3 * h}, options);
      for (int64_t t = 0; t < steps.n_steps(); ++t) {
        const int64_t alive = steps.n_alive[t], begin = steps.begin[t];
        const int64_t before = t > 0 ? steps.begin[t - 1] : 0;
        if (t > 0) {
          auto part = hidden.narrow(0, 0, alive);
          torch::mm_out(part, states.narrow(0, before, alive), w.t());
        }
        const T* hid = hidden.const_data_ptr<T>();
        parallel_for(0, alive, grain_of(8 * h), [&](int64_t from_row, int64_t to_row) {
          for (int64_t r = from_row; r < to_row; ++r) {
            const int64_t slot = steps.first[r] + t;
            T* after = state + (begin + r) * h;
            kernels::gru_step(kernels::GruStep<T>{from + slot * 3 * h, hid + r * 3 * h,
                                                  t > 0 ? state + (before + r) * h : nullptr,
                                                  gate + (begin + r) * 4 * h, after},
                              h);
            std::copy(after, after + h, to + slot * h);
          }
        });
      }
    });
    context->save_for_backward({w, offsets, gates, states});
    return out;
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &w = saved[0], &offsets = saved[1], &gates = saved[2], &states = saved[3];
    const auto g = upstream[0].contiguous();
    const int64_t n = g.size(0), h = w.size(1);
    const TimeSteps steps(offsets);
    const int64_t most = steps.n_alive.empty() ? 0 : steps.n_alive[0];
    const auto options = g.options().requires_grad(false);
    const auto to_in = torch::empty({n, 3 * h}, options);      // packed
    const auto to_hidden = torch::empty({n, 3 * h}, options);  // time-major
    auto carry = torch::zeros({most, h}, options);
    auto earlier = torch::empty({n - most, h}, options);  // the states before steps 1, 2, ..
    by_type(g, [&](auto type) {
      using T = decltype(type);
      const T* from = g.const_data_ptr<T>();
      const T* gate = gates.const_data_ptr<T>();
      const T* state = states.const_data_ptr<T>();
      T* in = to_in.mutable_data_ptr<T>();
      T* hid = to_hidden.mutable_data_ptr<T>();
      T* back = carry.mutable_data_ptr<T>();
      T* was = earlier.mutable_data_ptr<T>();
      for (int64_t t = steps.n_steps() - 1; t >= 0; --t) {
        const int64_t alive = steps.n_alive[t], begin = steps.begin[t];
        const int64_t before = t > 0 ? steps.begin[t - 1] : 0;
        parallel_for(0, alive, grain_of(8 * h), [&](int64_t from_row, int64_t to_row) {
          for (int64_t r = from_row; r < to_row; ++r) {
            const int64_t slot = steps.first[r] + t;
            kernels::add_scaled(T(1), from + slot * h, back + r * h, h);
            const T* h_before = t > 0 ? state + (before + r) * h : nullptr;
            kernels::gru_back(
                kernels::GruBack<T>{gate + (begin + r) * 4 * h, h_before, back + r * h,
                                    in + slot * 3 * h, hid + (begin + r) * 3 * h},
                h);
            if (t > 0) std::copy(h_before, h_before + h, was + (begin - most + r) * h);
          }
        });
        if (t > 0) carry.narrow(0, 0, alive).addmm_(to_hidden.narrow(0, begin, alive), w);
      }
    });
    const auto to_w = torch::mm(to_hidden.narrow(0, most, n - most).t(), earlier);
    return {to_in, to_w, torch::Tensor()};
  }
};

}  // namespace

torch::Tensor dropout(const torch::Tensor& x, double rate, const Pass& pass,
                      const std::string& name) {
  const Mask mask = mask_of(rate, pass, name);
  return mask.limit == 0 ? x : Dropout::apply(x, mask);
}

LayerNorm::LayerNorm(const std::string& name, int64_t width, double eps, const MakeParameter& make)
    : weight(&make(name + ".weight", torch::ones({width}))),
      bias(&make(name + ".bias", torch::zeros({width}))),
      eps(eps) {}

torch::Tensor LayerNorm::operator()(const torch::Tensor& x) const {
  return torch::layer_norm(x, {x.size(-1)}, *weight, *bias, eps);
}

torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        int64_t n_heads, bool causal, double rate, const Pass& pass,
                        const std::string& name) {
  TORCH_CHECK(
      q.dim() == 2 && q.sizes() == k.sizes() && q.sizes() == v.sizes() && q.size(1) % n_heads == 0,
      "attention wants q, k, v [P, d] with d a multiple of the ", n_heads, " heads");
  const bool with_gradient = torch::GradMode::is_enabled() &&
                             (q.requires_grad() || k.requires_grad() || v.requires_grad());
  return Attention::apply(q, k, v, pass.offsets, n_heads, causal, mask_of(rate, pass, name),
                          with_gradient);
}

torch::Tensor attention_composed(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, int64_t n_heads, bool causal,
                                 const torch::Tensor& offsets) {
  const int64_t width = q.size(1) / n_heads;
  std::vector<torch::Tensor> rows;
  for (int64_t row = 0; row + 1 < offsets.size(0); ++row) {
    const int64_t begin = offsets[row].item<int64_t>();
    const int64_t n = offsets[row + 1].item<int64_t>() - begin;
    std::vector<torch::Tensor> heads;
    for (int64_t a = 0; a < n_heads; ++a) {
      const auto part = [&](const torch::Tensor& x) {
        return x.narrow(0, begin, n).narrow(1, a * width, width);
      };
      auto scores = part(q).mm(part(k).t()) / std::sqrt(static_cast<double>(width));
      if (causal) {
        scores = scores.masked_fill(torch::ones({n, n}, torch::kBool).triu(1),
                                    -std::numeric_limits<double>::infinity());
      }
      heads.push_back(scores.softmax(1).mm(part(v)));
    }
    rows.push_back(torch::cat(heads, 1));
  }
  return torch::cat(rows, 0);
}

torch::Tensor gru(const torch::Tensor& in, const torch::Tensor& w_hidden,
                  const torch::Tensor& offsets) {
  TORCH_CHECK(in.dim() == 2 && w_hidden.dim() == 2 && in.size(1) == w_hidden.size(0) &&
                  w_hidden.size(0) == 3 * w_hidden.size(1),
              "gru wants in [P, 3h] and w_hidden [3h, h], got ", in.sizes(), " ", w_hidden.sizes());
  return Gru::apply(in, w_hidden, offsets);
}

torch::Tensor gru_composed(const torch::Tensor& in, const torch::Tensor& w_hidden,
                           const torch::Tensor& offsets) {
  const int64_t h = w_hidden.size(1);
  std::vector<torch::Tensor> states;
  for (int64_t row = 0; row + 1 < offsets.size(0); ++row) {
    auto state = torch::zeros({1, h}, in.options());
    for (int64_t p = offsets[row].item<int64_t>(); p < offsets[row + 1].item<int64_t>(); ++p) {
      const auto i = in.narrow(0, p, 1).chunk(3, 1), g = state.mm(w_hidden.t()).chunk(3, 1);
      const auto r = torch::sigmoid(i[0] + g[0]), z = torch::sigmoid(i[1] + g[1]);
      state = (1 - z) * torch::tanh(i[2] + r * g[2]) + z * state;
      states.push_back(state);
    }
  }
  return torch::cat(states, 0);
}

Transformer::Transformer(const std::string& name, const TransformerOptions& options,
                         const MakeParameter& make, const Random& init)
    : options_(options), name_(name) {
  const int64_t d = options.width;
  for (int64_t i = 0; i < options.n_layers; ++i) {
    const std::string at = name + "." + std::to_string(i);
    Block block;
    block.name = at;
    block.norm1 = LayerNorm(at + ".norm1", d, options.eps, make);
    block.norm2 = LayerNorm(at + ".norm2", d, options.eps, make);
    block.query = Linear(at + ".query", d, d, make, init);
    block.key = Linear(at + ".key", d, d, make, init);
    block.value = Linear(at + ".value", d, d, make, init);
    if (options.out_proj) block.out = Linear(at + ".out", d, d, make, init);
    block.inner = Linear(at + ".inner", options.inner, d, make, init);
    block.outer = Linear(at + ".outer", d, options.inner, make, init);
    blocks_.push_back(block);
  }
  if (options.norm != TransformerOptions::Norm::post) {
    last_ = LayerNorm(name + ".norm", d, options.eps, make);
  }
}

torch::Tensor Transformer::attend(const Block& block, const torch::Tensor& q,
                                  const torch::Tensor& x, const Pass& pass) const {
  const auto y =
      attention(block.query(q), block.key(x), block.value(x), options_.n_heads, options_.causal,
                options_.attention_dropout, pass, block.name + ".attention");
  return options_.out_proj ? block.out(y) : y;
}

torch::Tensor Transformer::feed(const Block& block, const torch::Tensor& z,
                                const Pass& pass) const {
  auto y = block.inner(z);
  y = options_.gelu ? torch::gelu(y) : torch::relu(y);
  if (options_.norm != TransformerOptions::Norm::post) {
    y = dropout(y, options_.hidden_dropout, pass, block.name + ".inner");
  }
  return dropout(block.outer(y), options_.hidden_dropout, pass, block.name + ".outer");
}

torch::Tensor Transformer::operator()(const torch::Tensor& x, const Pass& pass) const {
  const auto y = blocks(x, pass);
  return options_.norm == TransformerOptions::Norm::post ? y : last_(y);
}

torch::Tensor Transformer::blocks(torch::Tensor x, const Pass& pass) const {
  for (const Block& block : blocks_) {
    switch (options_.norm) {
      case TransformerOptions::Norm::original: {
        const auto q = block.norm1(x);
        const auto z = block.norm2(q + attend(block, q, x, pass));
        x = z + feed(block, z, pass);
        break;
      }
      case TransformerOptions::Norm::pre: {
        const auto q = block.norm1(x);
        const auto y = x + attend(block, q, q, pass);
        x = y + feed(block, block.norm2(y), pass);
        break;
      }
      case TransformerOptions::Norm::post: {
        const auto y = block.norm1(x + dropout(attend(block, x, x, pass), options_.hidden_dropout,
                                               pass, block.name + ".attended"));
        x = block.norm2(y + feed(block, y, pass));
        break;
      }
    }
  }
  return x;
}

GruEncoder::GruEncoder(const std::string& name, int64_t width, int64_t hidden,
                       const MakeParameter& make, const Random& init) {
  const auto family = [&](const char* part) { return init.stream("init." + name + "." + part); };
  w_in_ = &make(name + ".w_in", xavier_uniform(3 * hidden, width, family("w_in")));
  w_hidden_ = &make(name + ".w_hidden", xavier_uniform(3 * hidden, hidden, family("w_hidden")));
  w_out_ = &make(name + ".w_out", linear_default_weight(width, hidden, family("w_out")));
  b_out_ = &make(name + ".b_out", linear_default_bias(hidden, width, family("b_out")));
}

torch::Tensor GruEncoder::operator()(const torch::Tensor& x, const Pass& pass) const {
  const auto states = gru(torch::mm(x, w_in_->t()), *w_hidden_, pass.offsets);
  return torch::addmm(*b_out_, states, w_out_->t());
}

torch::Tensor position_index(const torch::Tensor& offsets, int64_t max_length, bool from_end) {
  const int64_t n_rows = offsets.size(0) - 1;
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  torch::Tensor out = torch::empty({n_rows > 0 ? offset[n_rows] : 0}, torch::kInt64);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  for (int64_t row = 0; row < n_rows; ++row) {
    const int64_t shift = from_end ? max_length - (offset[row + 1] - offset[row]) : 0;
    for (int64_t p = offset[row]; p < offset[row + 1]; ++p) to[p] = p - offset[row] + shift;
  }
  return out;
}

torch::Tensor last_slots(const torch::Tensor& offsets) {
  return offsets.narrow(0, 1, offsets.size(0) - 1) - 1;
}

}  // namespace tessera

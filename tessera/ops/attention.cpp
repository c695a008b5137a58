#include "tessera/ops/attention.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/sequence_kernels.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

int64_t grain_of(int64_t width) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width)); }

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
                               DropKey drop, bool with_gradient) {
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
        if (drop.limit > 0) {
          keep = torch::zeros(p.sizes(), torch::kUInt8);
          dropped = torch::empty_like(p);
          s.drop(p, c, drop, keep, dropped);
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
    context->saved_data["scale"] = drop.scale;
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

    void drop(const torch::Tensor& p, const Chunk& c, const DropKey& by, const torch::Tensor& keep,
              const torch::Tensor& out) const {
      const T* all = p.const_data_ptr<T>();
      uint8_t* kept = keep.mutable_data_ptr<uint8_t>();
      T* to = out.mutable_data_ptr<T>();
      each(c, [&](int64_t row, int64_t head, int64_t index) {
        for (int64_t t = 0; t < c.longest; ++t) {
          const int64_t at = (index * c.longest + t) * c.longest;
          if (t < length(row)) {
            const auto key_row = static_cast<uint64_t>((offsets[row] + t) * n_heads + head);
            kernels::keep_row(by.key, key_row, by.limit, kept + at, n_keys(row, t));
          }
          kernels::masked(all + at, kept + at, static_cast<T>(by.scale), to + at, c.longest);
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

}  // namespace

torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const torch::Tensor& offsets, int64_t n_heads, bool causal,
                        const DropKey& drop) {
  TORCH_CHECK(
      q.dim() == 2 && q.sizes() == k.sizes() && q.sizes() == v.sizes() && q.size(1) % n_heads == 0,
      "attention wants q, k, v [P, d] with d a multiple of the ", n_heads, " heads");
  if (composed(q)) return attention_composed(q, k, v, offsets, n_heads, causal, drop);
  const bool with_gradient = torch::GradMode::is_enabled() &&
                             (q.requires_grad() || k.requires_grad() || v.requires_grad());
  return Attention::apply(q, k, v, offsets, n_heads, causal, drop, with_gradient);
}

torch::Tensor attention_composed(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, const torch::Tensor& offsets_in,
                                 int64_t n_heads, bool causal, const DropKey& drop) {
  if (q.size(0) == 0) return q + k + v;
  const auto offsets = offsets_in.contiguous();
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  const int64_t d = q.size(1), width = d / n_heads;
  const auto on = torch::TensorOptions(q.device()).dtype(torch::kInt64);
  std::vector<torch::Tensor> out;
  for (const Chunk& c : chunks_of(offset, offsets.size(0) - 1, n_heads)) {
    const int64_t n = c.end - c.begin;
    const auto first = offsets.slice(0, c.begin, c.end).to(q.device()).unsqueeze(1);
    const auto length = offsets.slice(0, c.begin, c.end + 1).diff().to(q.device()).unsqueeze(1);
    const auto place = torch::arange(c.longest, on);
    // Slots of the padded rows; behind its end a row repeats its last one, and nobody looks there.
    const auto slots = first + torch::minimum(place.unsqueeze(0), length - 1);
    const auto heads = [&](const torch::Tensor& x) {
      return x.index_select(0, slots.flatten())
          .view({n, c.longest, n_heads, width})
          .transpose(1, 2);
    };
    auto hidden = place.view({1, 1, -1}) >= length.unsqueeze(2);
    if (causal) hidden = hidden.logical_or(place.view({1, 1, -1}) > place.view({1, -1, 1}));
    auto p = heads(q)
                 .matmul(heads(k).transpose(2, 3))
                 .div(std::sqrt(static_cast<double>(width)))
                 .masked_fill(hidden.unsqueeze(1), -std::numeric_limits<double>::infinity())
                 .softmax(3);
    if (drop.limit > 0) {
      const auto rows = slots.view({n, 1, -1}) * n_heads + torch::arange(n_heads, on).view({-1, 1});
      p = p * kept_composed(rows, c.longest, drop).to(p.scalar_type()).mul_(drop.scale);
    }
    std::vector<int64_t> taken;  // of the chunk's slots among the padded ones
    for (int64_t row = c.begin; row < c.end; ++row) {
      for (int64_t t = 0; t < offset[row + 1] - offset[row]; ++t) {
        taken.push_back((row - c.begin) * c.longest + t);
      }
    }
    out.push_back(p.matmul(heads(v))
                      .transpose(1, 2)
                      .reshape({n * c.longest, d})
                      .index_select(0, torch::tensor(taken, torch::kInt64).to(q.device())));
  }
  return torch::cat(out, 0);
}

}  // namespace tessera

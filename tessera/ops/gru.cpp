#include "tessera/ops/gru.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <numeric>
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

torch::Tensor gru(const torch::Tensor& in, const torch::Tensor& w_hidden,
                  const torch::Tensor& offsets) {
  TORCH_CHECK(in.dim() == 2 && w_hidden.dim() == 2 && in.size(1) == w_hidden.size(0) &&
                  w_hidden.size(0) == 3 * w_hidden.size(1),
              "gru wants in [P, 3h] and w_hidden [3h, h], got ", in.sizes(), " ", w_hidden.sizes());
  if (composed(in)) return gru_composed(in, w_hidden, offsets);
  return Gru::apply(in, w_hidden, offsets);
}

torch::Tensor gru_composed(const torch::Tensor& in, const torch::Tensor& w_hidden,
                           const torch::Tensor& offsets_in) {
  const auto offsets = offsets_in.contiguous();
  const TimeSteps steps(offsets);
  std::vector<torch::Tensor> states;  // by time step
  std::vector<int64_t> place(static_cast<size_t>(in.size(0)));
  auto state = torch::zeros({offsets.size(0) - 1, w_hidden.size(1)}, in.options());
  for (int64_t t = 0; t < steps.n_steps(); ++t) {
    std::vector<int64_t> slots;
    for (int64_t r = 0; r < steps.n_alive[t]; ++r) {
      slots.push_back(steps.first[r] + t);
      place[static_cast<size_t>(slots.back())] = steps.begin[t] + r;
    }
    const auto now = in.index_select(0, torch::tensor(slots, torch::kInt64).to(in.device()));
    state = state.narrow(0, 0, steps.n_alive[t]);
    const auto i = now.chunk(3, 1), g = state.mm(w_hidden.t()).chunk(3, 1);
    const auto r = torch::sigmoid(i[0] + g[0]), z = torch::sigmoid(i[1] + g[1]);
    state = (1 - z) * torch::tanh(i[2] + r * g[2]) + z * state;
    states.push_back(state);
  }
  if (states.empty()) return state.narrow(0, 0, 0) + in.sum() * w_hidden.sum();
  return torch::cat(states, 0).index_select(0, torch::tensor(place, torch::kInt64).to(in.device()));
}

}  // namespace tessera

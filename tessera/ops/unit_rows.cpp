#include "tessera/ops/unit_rows.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <limits>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

using kernels::dot;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kShortest = 1e-12;
constexpr int64_t kGrain = 128;  // rows a thread takes at least

/// `row` [d] divided by its length, in place; 1 / length, 0 for a row that is too short.
template <typename T>
T shorten(T* row, int64_t d) {
  const T norm = std::sqrt(dot(row, row, d));
  const T by = norm < static_cast<T>(kShortest) ? T{0} : 1 / norm;
  for (int64_t i = 0; i < d; ++i) row[i] *= by;
  return by;
}

/// d v of v / |v|, given the unit row and 1 / |v|.
template <typename T>
void back(const T* g, const T* unit, T by, int64_t d, T* to) {
  const T along = dot(g, unit, d);
  for (int64_t i = 0; i < d; ++i) to[i] = (g[i] - along * unit[i]) * by;
}

class Unit : public torch::autograd::Function<Unit> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x) {
    const int64_t n = x.size(0), d = x.size(1);
    const auto out = x.detach().clone(at::MemoryFormat::Contiguous);
    const auto inverses = torch::empty({n}, out.options());
    by_type(out, [&](auto type) {
      using T = decltype(type);
      T* rows = out.mutable_data_ptr<T>();
      T* inverse = inverses.mutable_data_ptr<T>();
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) inverse[r] = shorten(rows + r * d, d);
      });
    });
    context->save_for_backward({out, inverses});
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto g = upstream[0].contiguous(), out = torch::empty_like(g);
    const int64_t n = g.size(0), d = g.size(1);
    by_type(g, [&](auto type) {
      using T = decltype(type);
      const T* from = g.const_data_ptr<T>();
      const T* unit = saved[0].const_data_ptr<T>();
      const T* inverse = saved[1].const_data_ptr<T>();
      T* to = out.mutable_data_ptr<T>();
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          back(from + r * d, unit + r * d, inverse[r], d, to + r * d);
        }
      });
    });
    return {out};
  }
};

class FusedUnit : public torch::autograd::Function<FusedUnit> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& s_in,
                               const torch::Tensor& e_in, const torch::Tensor& h_in, double floor) {
    const auto s = s_in.contiguous(), e = e_in.contiguous(), h = h_in.contiguous();
    const int64_t n = e.size(0), d = e.size(1);
    const auto out = torch::empty_like(e), inverses = torch::empty_like(s);
    by_type(e, [&](auto type) {
      using T = decltype(type);
      const T* share = s.const_data_ptr<T>();
      const T* es = e.const_data_ptr<T>();
      const T* hs = h.const_data_ptr<T>();
      T* to = out.mutable_data_ptr<T>();
      T* inverse = inverses.mutable_data_ptr<T>();
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const T own = share[r] + static_cast<T>(floor), other = 1 - share[r];
          for (int64_t i = r * d; i < r * d + d; ++i) to[i] = own * es[i] + other * hs[i];
          inverse[r] = shorten(to + r * d, d);
        }
      });
    });
    context->save_for_backward({s, e, h, out, inverses});
    context->saved_data["floor"] = floor;
    context->saved_data["wants_s"] = s_in.requires_grad();
    context->saved_data["wants_e"] = e_in.requires_grad();
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &s = saved[0], &e = saved[1], &h = saved[2], &unit = saved[3], &inverses = saved[4];
    const auto g = upstream[0].contiguous();
    const bool wants_s = context->saved_data["wants_s"].toBool();
    const bool wants_e = context->saved_data["wants_e"].toBool();
    const double floor = context->saved_data["floor"].toDouble();
    const auto dh = torch::empty_like(h);
    const auto de = wants_e ? torch::empty_like(e) : torch::Tensor();
    const auto ds = wants_s ? torch::empty_like(s) : torch::Tensor();
    const int64_t n = e.size(0), d = e.size(1);
    by_type(g, [&](auto type) {
      using T = decltype(type);
      const T* from = g.const_data_ptr<T>();
      const T* share = s.const_data_ptr<T>();
      const T* es = e.const_data_ptr<T>();
      const T* hs = h.const_data_ptr<T>();
      const T* units = unit.const_data_ptr<T>();
      const T* inverse = inverses.const_data_ptr<T>();
      T* dhs = dh.mutable_data_ptr<T>();
      T* des = wants_e ? de.mutable_data_ptr<T>() : nullptr;
      T* dss = wants_s ? ds.mutable_data_ptr<T>() : nullptr;
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t at = r * d;
          back(from + at, units + at, inverse[r], d, dhs + at);
          if (wants_s) dss[r] = dot(dhs + at, es + at, d) - dot(dhs + at, hs + at, d);
          const T own = share[r] + static_cast<T>(floor), other = 1 - share[r];
          if (wants_e) {
            for (int64_t i = at; i < at + d; ++i) des[i] = own * dhs[i];
          }
          for (int64_t i = at; i < at + d; ++i) dhs[i] *= other;
        }
      });
    });
    return {ds, de, dh, torch::Tensor()};
  }
};

}  // namespace

torch::Tensor unit_rows(const torch::Tensor& x) {
  TORCH_CHECK(x.dim() == 2, "unit_rows wants [n, d], got ", x.sizes());
  if (composed(x)) return unit_rows_composed(x);
  return Unit::apply(x);
}

torch::Tensor unit_rows_composed(const torch::Tensor& x) {
  const auto norm = x.norm(2, 1, true);
  return x / norm.masked_fill(norm < kShortest, std::numeric_limits<double>::infinity());
}

torch::Tensor fused_unit_rows(const torch::Tensor& s, const torch::Tensor& e,
                              const torch::Tensor& h, double floor) {
  TORCH_CHECK(e.dim() == 2 && e.sizes() == h.sizes() && s.dim() == 1 && s.size(0) == e.size(0) &&
                  s.scalar_type() == e.scalar_type() && h.scalar_type() == e.scalar_type(),
              "fused_unit_rows wants s [n] and e, h [n, d] of one type, got ", s.sizes(), " ",
              e.sizes(), " ", h.sizes());
  if (composed(e)) return unit_rows_composed(fused_rows(s, e, h, floor));
  return FusedUnit::apply(s, e, h, floor);
}

torch::Tensor fused_rows(const torch::Tensor& s, const torch::Tensor& e, const torch::Tensor& h,
                         double floor) {
  const auto share = s.unsqueeze(1);
  return (share + floor) * e + (1 - share) * h;
}

}  // namespace tessera

#include "tessera/ops/adam.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

using Decay = AdamOptions::Decay;
using kernels::AdamConstants;
using kernels::AdamStep;

AdamConstants constants_of(const AdamOptions& options) {
  return {options.beta1, options.beta2, options.eps,
          options.decay == Decay::gradient ? options.weight_decay : 0,
          options.decay == Decay::decoupled};
}

AdamStep step_of(const AdamOptions& options, int64_t step) {
  TORCH_CHECK(options.learning_rate, "adam has no learning rate: set AdamOptions::learning_rate");
  const double rate = options.learning_rate(step), t = static_cast<double>(step);
  return {rate / (1 - std::pow(options.beta1, t)), 1 / std::sqrt(1 - std::pow(options.beta2, t)),
          rate * options.weight_decay};
}

bool decays(const AdamOptions& options) {
  return options.decay != Decay::none && options.weight_decay != 0;
}

void check_floating(const torch::Tensor& value) {
  const auto type = value.scalar_type();
  TORCH_CHECK(type == torch::kFloat32 || type == torch::kFloat64,
              "adam works on float32 and float64, got ", type);
}

constexpr int64_t kGrain = 8192;  // elements a thread takes at least
constexpr int64_t kAhead = 8;     // rows fetched before their turn

/// A row of three tables; the processor sees for itself how a long one goes on.
template <typename T>
void fetch(const T* p, const T* m, const T* v, int64_t row, int64_t width) {
  const int64_t n = std::min<int64_t>(width, 128);
  for (const T* table : {p, m, v}) kernels::prefetch(table + row * width, n);
}

}  // namespace

void adam_composed(torch::Tensor& value, torch::Tensor& m, torch::Tensor& v,
                   const torch::Tensor& gradient, int64_t step, const AdamOptions& options) {
  const torch::NoGradGuard no_grad;
  const AdamStep now = step_of(options, step);
  torch::Tensor g = gradient;
  if (decays(options) && options.decay == Decay::gradient) g = g + value * options.weight_decay;
  if (decays(options) && options.decay == Decay::decoupled) value.sub_(value * now.shrink);
  m.mul_(options.beta1).add_(g * (1 - options.beta1));
  v.mul_(options.beta2).add_(g * (1 - options.beta2) * g);
  value.sub_(m * now.size / (v.sqrt() * now.inverse_root + options.eps));
}

void DenseAdam::step(const std::string& name, torch::Tensor& value, const torch::Tensor& gradient,
                     const AdamOptions& options) {
  const torch::NoGradGuard no_grad;
  check_floating(value);
  TORCH_CHECK(value.is_contiguous(), "adam: '", name, "' must be contiguous");
  TORCH_CHECK(gradient.sizes() == value.sizes() && gradient.scalar_type() == value.scalar_type(),
              "adam: the gradient of '", name, "' must be ", value.sizes(), ", got ",
              gradient.sizes());
  Moments& moments = moments_[name];
  if (!moments.m.defined()) {
    moments.m = torch::zeros_like(value, torch::TensorOptions().requires_grad(false));
    moments.v = torch::zeros_like(moments.m);
  }
  // Moments of another shape can only come from a checkpoint.
  const bool fit = moments.m.sizes() == value.sizes() && moments.v.sizes() == value.sizes() &&
                   moments.m.scalar_type() == value.scalar_type() &&
                   moments.v.scalar_type() == value.scalar_type() && moments.step >= 0;
  if (!fit) throw data_error("the checkpoint's moments of '{}' do not fit it", name);
  ++moments.step;
  if (composed(value)) {
    adam_composed(value, moments.m, moments.v, gradient, moments.step, options);
    return;
  }
  const AdamConstants constants = constants_of(options);
  const AdamStep now = step_of(options, moments.step);
  by_type(value, [&](auto type) {
    using T = decltype(type);
    const torch::Tensor whole = gradient.contiguous();
    T* p = value.mutable_data_ptr<T>();
    T* m = moments.m.mutable_data_ptr<T>();
    T* v = moments.v.mutable_data_ptr<T>();
    const T* g = whole.const_data_ptr<T>();
    parallel_for(0, value.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernels::adam(p + begin, m + begin, v + begin, g + begin, end - begin, constants, &now, 1);
    });
  });
}

RowTable::RowTable(torch::Tensor value) {
  check_floating(value);
  TORCH_CHECK(value.dim() == 2, "a row table must be [rows, width], got ", value.sizes());
  value_ = value.detach().contiguous();
  last_step_ = torch::zeros({value_.size(0)}, torch::kInt64);
}

void RowTable::configure(AdamOptions options) {
  if (defined() && options_.learning_rate) catch_up();
  options_ = std::move(options);
  steps_.clear();
  ruled_from_ = step_;
}

void RowTable::need_steps() {
  while (ruled_from_ + static_cast<int64_t>(steps_.size()) < step_) {
    steps_.push_back(step_of(options_, ruled_from_ + static_cast<int64_t>(steps_.size()) + 1));
  }
}

void RowTable::need_moments() {
  if (m_.defined()) return;
  m_ = torch::zeros_like(value_);
  v_ = torch::zeros_like(value_);
}

void RowTable::replay(const int64_t* rows, int64_t n) {
  struct Pending {
    int64_t row, from;  // steps from + 1 .. step_ are missing
  };
  std::vector<Pending> pending;
  int64_t* last = last_step_.mutable_data_ptr<int64_t>();
  const bool decaying = decays(options_);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = rows ? rows[i] : i;
    // A row without a step has zero moments: without decay its steps change nothing.
    if (last[row] == step_ || (last[row] == 0 && !decaying)) continue;
    const int64_t from = std::max(last[row], ruled_from_);
    last[row] = step_;
    if (from < step_) pending.push_back({row, from});
  }
  if (pending.empty()) return;
  need_steps();
  need_moments();
  const AdamConstants constants = constants_of(options_);
  int64_t n_steps = 0;
  for (const Pending& row : pending) n_steps += step_ - row.from;
  const int64_t width = value_.size(1), count = static_cast<int64_t>(pending.size());
  const int64_t grain =
      std::max<int64_t>(1, kGrain * count / std::max<int64_t>(1, n_steps * width));
  by_type(value_, [&](auto type) {
    using T = decltype(type);
    T* p = value_.mutable_data_ptr<T>();
    T* m = m_.mutable_data_ptr<T>();
    T* v = v_.mutable_data_ptr<T>();
    parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto [row, from] = pending[static_cast<size_t>(i)];
        const int64_t at = row * width;
        if (i + kAhead < end) fetch(p, m, v, pending[static_cast<size_t>(i + kAhead)].row, width);
        kernels::adam(p + at, m + at, v + at, static_cast<const T*>(nullptr), width, constants,
                      steps_.data() + (from - ruled_from_), step_ - from);
      }
    });
  });
}

torch::Tensor RowTable::rows(const torch::Tensor& rows) {
  TORCH_CHECK(rows.scalar_type() == torch::kInt64 && rows.dim() == 1,
              "rows of a table must be int64 [n], got ", rows.scalar_type(), " ", rows.sizes());
  const torch::NoGradGuard no_grad;
  if (!rows.is_cpu()) return value_.index_select(0, rows);  // every step there moves every row
  const torch::Tensor index = rows.contiguous();
  const int64_t* data = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    TORCH_CHECK(data[i] >= 0 && data[i] < n_rows(), "row ", data[i], " of a table of ", n_rows());
  }
  replay(data, index.numel());
  return value_.index_select(0, index.to(value_.device()));
}

torch::Tensor RowTable::gather(const torch::Tensor& rows) {
  TORCH_CHECK(!gathered_.defined() || !gathered_.grad().defined(),
              "a row table is gathered once a step: call step() first");
  gathered_ = this->rows(rows).requires_grad_();
  gathered_rows_ = rows.contiguous();
  return gathered_;
}

void RowTable::step_all(const torch::Tensor& rows, const torch::Tensor& gradient) {
  catch_up();  // what kernels left pending
  ++step_;
  if (!gradient.defined() && !m_.defined() && !decays(options_)) return;
  const torch::NoGradGuard no_grad;
  need_moments();
  auto whole = torch::zeros_like(value_);
  if (gradient.defined()) whole.index_add_(0, rows.to(value_.device()), gradient);
  adam_composed(value_, m_, v_, whole, step_, options_);
  last_step_.fill_(step_);
}

void RowTable::step() {
  const torch::Tensor rows = gathered_rows_;
  const torch::Tensor gradient = gathered_.defined() ? gathered_.grad() : torch::Tensor();
  gathered_rows_ = gathered_ = torch::Tensor();
  if (composed(value_)) return step_all(rows, gradient);
  ++step_;
  if (!gradient.defined() || rows.numel() == 0) return;
  const torch::NoGradGuard no_grad;
  need_steps();
  need_moments();
  const AdamConstants constants = constants_of(options_);
  const AdamStep now = steps_.back();
  const int64_t* index = rows.const_data_ptr<int64_t>();
  int64_t* last = last_step_.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    TORCH_CHECK(last[index[i]] != step_, "row ", index[i], " was gathered twice in one step");
    last[index[i]] = step_;
  }
  const int64_t width = value_.size(1);
  by_type(value_, [&](auto type) {
    using T = decltype(type);
    const torch::Tensor whole = gradient.contiguous();
    const T* g = whole.const_data_ptr<T>();
    T* p = value_.mutable_data_ptr<T>();
    T* m = m_.mutable_data_ptr<T>();
    T* v = v_.mutable_data_ptr<T>();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
    parallel_for(0, rows.numel(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = index[i] * width;
        if (i + kAhead < end) fetch(p, m, v, index[i + kAhead], width);
        kernels::adam(p + at, m + at, v + at, g + i * width, width, constants, &now, 1);
      }
    });
  });
}

void RowTable::catch_up() { replay(nullptr, n_rows()); }

const torch::Tensor& RowTable::value() {
  catch_up();
  return value_;
}

RowTable::Parts RowTable::parts() {
  catch_up();
  const torch::Tensor none = torch::empty({0}, value_.options());
  return {value_, m_.defined() ? m_ : none, v_.defined() ? v_ : none, last_step_, step_};
}

void RowTable::load(Parts parts) {
  if (!parts.value.defined() || parts.value.dim() != 2 || !parts.value.is_floating_point()) {
    throw data_error("a row table's values must be float [rows, width]");
  }
  const auto on = value_.defined() ? value_.device() : torch::Device(torch::kCPU);
  RowTable loaded(parts.value.to(on, parts.value.scalar_type(), false, /*copy=*/true));
  const auto sizes = loaded.value_.sizes();
  if (parts.m.defined() && parts.m.numel() > 0) {
    if (parts.m.sizes() != sizes || !parts.v.defined() || parts.v.sizes() != sizes) {
      throw data_error("a row table of {} rows has moments of another shape", loaded.n_rows());
    }
    loaded.m_ = parts.m.to(on, loaded.value_.scalar_type()).clone().contiguous();
    loaded.v_ = parts.v.to(on, loaded.value_.scalar_type()).clone().contiguous();
  }
  if (!parts.last_step.defined() || parts.last_step.dim() != 1 ||
      parts.last_step.size(0) != loaded.n_rows() ||
      parts.last_step.scalar_type() != torch::kInt64) {
    throw data_error("a row table of {} rows needs the last step of each", loaded.n_rows());
  }
  loaded.last_step_ = parts.last_step.clone().contiguous();
  loaded.step_ = parts.step;
  // As parts() leaves them: up to date, or never moved.
  const bool good =
      parts.step >= 0 &&
      (loaded.last_step_ == 0).logical_or(loaded.last_step_ == parts.step).all().item<bool>();
  if (!good) throw data_error("a row table's last steps must be 0 or {}", parts.step);
  loaded.ruled_from_ = parts.step;
  loaded.options_ = std::move(options_);
  *this = std::move(loaded);
}

}  // namespace tessera

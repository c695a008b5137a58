#include "tessera/nn/part_net.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>

#include "tessera/ops/gather.h"

namespace tessera {
namespace {

std::string decoder_name(const PartNetOptions& options, size_t from, size_t to) {
  return options.shared_decoder ? options.names[to] + ".decoder"
                                : options.names[from] + ".to_" + options.names[to] + ".decoder";
}

int64_t hidden(int64_t width) { return std::max<int64_t>(1, width / 2); }

void add_linear(std::vector<PartParameter>& out, const std::string& name, int64_t from, int64_t to,
                bool decoder) {
  const double bound = 1 / std::sqrt(static_cast<double>(from));
  out.push_back({name + ".weight", {from, to}, bound, 0, decoder});
  out.push_back({name + ".bias", {to}, bound, 0, decoder});
}

/// Rows of x where `rows` is defined, else x itself.
torch::Tensor taken(const torch::Tensor& x, const torch::Tensor& rows) {
  return rows.defined() ? gather_rows(x, rows) : x;
}

}  // namespace

torch::Tensor mean_common(const std::vector<torch::Tensor>& c,
                          const std::vector<torch::Tensor>& present) {
  auto sum = torch::zeros_like(c[0]), n = torch::zeros({c[0].size(0), 1}, c[0].options());
  for (size_t m = 0; m < c.size(); ++m) {
    if (!present[m].defined()) {
      sum += c[m];
      n += 1;
      continue;
    }
    const auto there = present[m].unsqueeze(1);
    sum += torch::where(there, c[m], torch::zeros_like(c[m]));
    n += there.to(n.scalar_type());
  }
  return sum / n.clamp_min(1);
}

PartNet::PartNet(PartNetOptions options,
                 std::function<const torch::Tensor&(const std::string&)> tensor)
    : options_(std::move(options)), tensor_(std::move(tensor)) {}

std::vector<PartParameter> PartNet::parameters(const PartNetOptions& options) {
  std::vector<PartParameter> out;
  const int64_t d = options.d;
  for (size_t m = 0; m < options.names.size(); ++m) {
    const std::string& name = options.names[m];
    if (options.mlp_encoder) {
      add_linear(out, name + ".encoder", options.widths[m], hidden(options.widths[m]), false);
      add_linear(out, name + ".encoder2", hidden(options.widths[m]), d, false);
      out.push_back({name + ".norm.weight", {d}, 0, 1, false});
      out.push_back({name + ".norm.bias", {d}, 0, 0, false});
    } else {
      add_linear(out, name + ".encoder", options.widths[m], d, false);
    }
    if (options.mlp_common) {
      add_linear(out, name + ".common", d, d, false);
      add_linear(out, name + ".common2", d, d, false);
    } else {
      out.push_back(
          {name + ".common.weight", {d, d}, std::sqrt(6.0 / static_cast<double>(d)), 0, false});
    }
  }
  for (size_t to = 0; to < options.names.size(); ++to) {
    for (size_t from = 0; from < options.names.size(); ++from) {
      const bool first = from == (to == 0 ? 1U : 0U);
      if (from == to || (options.shared_decoder && !first)) continue;
      const std::string name = decoder_name(options, from, to);
      const int64_t width = options.widths[to];
      if (options.mlp_encoder) {
        add_linear(out, name, d, hidden(width), true);
        add_linear(out, name + "2", hidden(width), width, true);
      } else {
        add_linear(out, name, d, width, true);
      }
    }
  }
  return out;
}

torch::Tensor PartNet::linear(const std::string& name, const torch::Tensor& x) const {
  return torch::addmm(tensor_(name + ".bias"), x, tensor_(name + ".weight"));
}

Parts PartNet::split(size_t m, const torch::Tensor& x) const {
  const std::string& name = options_.names[m];
  Parts out;
  if (options_.mlp_encoder) {
    const auto inner = linear(name + ".encoder2", linear(name + ".encoder", x).relu()).relu();
    out.e = torch::layer_norm(inner, {options_.d}, tensor_(name + ".norm.weight"),
                              tensor_(name + ".norm.bias"), 1e-6);
  } else {
    out.e = linear(name + ".encoder", x);
  }
  out.c = options_.mlp_common ? linear(name + ".common2", linear(name + ".common", out.e).relu())
                              : out.e.matmul(tensor_(name + ".common.weight"));
  out.s = out.e - out.c;
  return out;
}

torch::Tensor PartNet::decode(size_t from, size_t to, const torch::Tensor& y) const {
  const std::string name = decoder_name(options_, from, to);
  if (!options_.mlp_encoder) return linear(name, y);
  return linear(name + "2", linear(name, y).relu());
}

OrderLoss PartNet::decoded_order_loss(size_t from, size_t to, const Parts& of,
                                      const torch::Tensor& target) const {
  if (!options_.mlp_encoder && options_.order.contrast != OrderOptions::Contrast::mse_rank) {
    const std::string name = decoder_name(options_, from, to);
    return order_loss_affine(target, of.c, of.s, tensor_(name + ".weight"), tensor_(name + ".bias"),
                             options_.order);
  }
  const auto decoded =
      decode(from, to, torch::cat({of.c, of.e, of.s})).view({3, target.size(0), target.size(1)});
  return order_loss(target, decoded, options_.order);
}

PartNet::Loss PartNet::loss(const std::vector<torch::Tensor>& x,
                            const std::vector<torch::Tensor>& present) const {
  const size_t n = options_.names.size();
  std::vector<Parts> parts;
  for (size_t m = 0; m < n; ++m) parts.push_back(split(m, x[m]));
  const auto n_pairs = static_cast<double>(n * (n - 1) / 2);
  auto sim = torch::zeros({}, x[0].options()), ort = sim, order = sim;
  Loss out;
  int64_t n_cosines = 0, n_ordered = 0;
  double sums[3] = {};
  for (size_t a = 0; a < n; ++a) {
    for (size_t b = a + 1; b < n; ++b) {
      torch::Tensor rows;  // undefined: all
      if (present[a].defined() || present[b].defined()) {
        const auto both = !present[a].defined()   ? present[b]
                          : !present[b].defined() ? present[a]
                                                  : present[a].logical_and(present[b]);
        rows = both.nonzero().squeeze(1);
        if (rows.size(0) == both.size(0)) rows = torch::Tensor();
        if (rows.defined() && rows.size(0) == 0) continue;
      }
      const auto part = [&](size_t m) {
        return Parts{taken(parts[m].e, rows), taken(parts[m].c, rows), taken(parts[m].s, rows)};
      };
      const Parts pa = part(a), pb = part(b);
      sim = sim + (pa.c - pb.c).square().mean();
      ort = ort + (pa.s * pb.s).sum(1).square().mean();
      if (options_.w_de == 0 && torch::GradMode::is_enabled()) continue;
      const auto direction = [&](size_t from, size_t to, const Parts& of) {
        const auto target = rows.defined() ? x[to].index_select(0, rows) : x[to];
        const OrderLoss each = decoded_order_loss(from, to, of, target);
        order = order + each.value;
        if (torch::GradMode::is_enabled()) return;  // a step reads nothing back
        out.directions.emplace_back(options_.names[from] + " to " + options_.names[to],
                                    each.value.item<double>());
        const auto cosines = each.cosines.to(torch::kCPU);
        const double* p = cosines.const_data_ptr<double>();
        const int64_t size = target.size(0);
        for (int64_t i = 0; i < size; ++i) {
          for (int k = 0; k < 3; ++k) sums[k] += p[k * size + i];
          n_ordered += p[i] > p[size + i] && p[size + i] > p[2 * size + i];
        }
        n_cosines += size;
      };
      direction(a, b, pa);
      direction(b, a, pb);
    }
  }
  sim = sim / n_pairs;
  ort = ort / n_pairs;
  order = order / n_pairs;
  out.total = options_.w_en * (sim + ort) + options_.w_de * order;
  out.terms = {{"sim", sim}, {"ort", ort}, {"order", order}};
  if (options_.purify > 0) {
    auto purify = torch::zeros({}, x[0].options());
    for (size_t m = 0; m < n; ++m) {
      torch::Tensor rows;
      if (present[m].defined()) rows = present[m].nonzero().squeeze(1);
      const auto c = taken(parts[m].c, rows);
      if (c.size(0) >= 8) purify = purify + overlap(c, taken(parts[m].s, rows));
    }
    out.total = out.total + options_.purify * purify;
    out.terms.emplace_back("purify", purify);
  }
  const double divisor = n_cosines > 0 ? static_cast<double>(n_cosines) : 1;
  out.p_c = sums[0] / divisor;
  out.p_0 = sums[1] / divisor;
  out.p_s = sums[2] / divisor;
  out.ordered = static_cast<double>(n_ordered) / divisor;
  return out;
}

}  // namespace tessera

#include "tessera/eval/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "tessera/base/error.h"
#include "tessera/base/random.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// The continued fraction of I_x(a, b), by the modified Lentz method (Numerical Recipes 6.4).
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300, kClose = 1e-16;
  const auto away = [](double value) { return std::fabs(value) < kTiny ? kTiny : value; };
  double c = 1, d = 1 / away(1 - (a + b) * x / (a + 1)), h = d;
  for (int m = 1; m < 10000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / away(1 + even * d);
    c = away(1 + even / c);
    h *= d * c;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / away(1 + odd * d);
    c = away(1 + odd / c);
    h *= d * c;
    if (std::fabs(d * c - 1) < kClose) break;
  }
  return h;
}

/// Uniform integers below n, unbiased, from whole Philox blocks.
class Draws {
 public:
  Draws(const Random& random, uint64_t step, uint32_t n)
      : random_(random), step_(step), n_(n), threshold_((0U - n) % n) {}
  uint32_t next() {
    for (;;) {
      if (at_ == 4) {
        words_ = random_.block(step_, 0, block_++);
        at_ = 0;
      }
      const uint64_t product = uint64_t{words_[at_++]} * n_;
      if (static_cast<uint32_t>(product) >= threshold_) return static_cast<uint32_t>(product >> 32);
    }
  }

 private:
  const Random& random_;
  const uint64_t step_;
  const uint32_t n_, threshold_;
  std::array<uint32_t, 4> words_{};
  size_t at_ = 4;
  uint32_t block_ = 0;
};

/// P(W <= w) where each of the doubled ranks joins W with probability 1/2.
double signed_rank_tail(const std::vector<int64_t>& doubled_ranks, int64_t doubled_w) {
  const int64_t total = std::accumulate(doubled_ranks.begin(), doubled_ranks.end(), int64_t{0});
  std::vector<double> ways(total + 1, 0.0);
  ways[0] = 1;
  for (const int64_t rank : doubled_ranks) {
    for (int64_t sum = total; sum >= rank; --sum) ways[sum] += ways[sum - rank];
  }
  const double low = std::accumulate(ways.begin(), ways.begin() + doubled_w + 1, 0.0);
  return low / std::ldexp(1.0, static_cast<int>(doubled_ranks.size()));
}

}  // namespace

double mean_of(std::span<const double> values) {
  if (values.empty()) return kNan;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double deviation_of(std::span<const double> values) {
  if (values.size() < 2) return kNan;
  const double mean = mean_of(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log1p(-x));
  // The fraction converges fast on this side of the mean only.
  if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
  return 1 - front * beta_fraction(b, a, 1 - x) / b;
}

double student_p(double t, double df) {
  if (std::isnan(t) || df < 1) return kNan;
  if (std::isinf(t)) return 0;
  return incomplete_beta(df / 2, 0.5, df / (df + t * t));
}

PairedT paired_t(std::span<const double> differences) {
  PairedT out;
  out.n = static_cast<int64_t>(differences.size());
  out.mean = mean_of(differences);
  out.deviation = deviation_of(differences);
  if (out.n < 2) {
    out.t = out.p = kNan;
  } else if (out.deviation == 0) {
    out.t = out.mean == 0 ? 0 : std::copysign(std::numeric_limits<double>::infinity(), out.mean);
    out.p = out.mean == 0 ? 1 : 0;
  } else {
    out.t = out.mean / (out.deviation / std::sqrt(static_cast<double>(out.n)));
    out.p = student_p(out.t, static_cast<double>(out.n - 1));
  }
  return out;
}

Wilcoxon wilcoxon(std::span<const double> differences, int64_t exact_up_to) {
  std::vector<double> kept;
  for (const double d : differences) {
    if (d != 0) kept.push_back(d);
  }
  Wilcoxon out;
  out.n = static_cast<int64_t>(kept.size());
  if (kept.empty()) return out;
  std::sort(kept.begin(), kept.end(),
            [](double a, double b) { return std::fabs(a) < std::fabs(b); });
  // Mid-ranks doubled are integers, so that ties stay exact.
  std::vector<int64_t> doubled(kept.size());
  double ties = 0;
  for (size_t begin = 0; begin < kept.size();) {
    size_t end = begin;
    while (end < kept.size() && std::fabs(kept[end]) == std::fabs(kept[begin])) ++end;
    for (size_t i = begin; i < end; ++i) doubled[i] = static_cast<int64_t>(begin + 1 + end);
    const auto t = static_cast<double>(end - begin);
    ties += t * t * t - t;
    begin = end;
  }
  int64_t plus = 0, minus = 0;
  for (size_t i = 0; i < kept.size(); ++i) (kept[i] > 0 ? plus : minus) += doubled[i];
  out.w_plus = static_cast<double>(plus) / 2;
  out.w_minus = static_cast<double>(minus) / 2;
  const int64_t smaller = std::min(plus, minus);
  if (out.n <= exact_up_to) {
    out.exact = true;
    out.p = std::min(1.0, 2 * signed_rank_tail(doubled, smaller));
    return out;
  }
  const auto n = static_cast<double>(out.n);
  const double variance = n * (n + 1) * (2 * n + 1) / 24 - ties / 48;
  out.z = (static_cast<double>(smaller) / 2 - n * (n + 1) / 4) / std::sqrt(variance);
  out.p = std::min(1.0, std::erfc(std::fabs(out.z) / std::sqrt(2.0)));
  return out;
}

double quantile(std::span<const double> sorted, double q) {
  if (sorted.empty()) return kNan;
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  if (below + 1 >= sorted.size()) return sorted.back();
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[below + 1] - sorted[below]);
}

Interval bootstrap_mean(std::span<const double> values, uint64_t seed, int64_t resamples) {
  if (values.empty()) return {kNan, kNan};
  const Random random(seed, "bootstrap");
  const auto n = static_cast<uint32_t>(values.size());
  std::vector<double> means(resamples);
  parallel_for(0, resamples, 64, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Draws draws(random, static_cast<uint64_t>(b), n);
      double sum = 0;
      for (uint32_t i = 0; i < n; ++i) sum += values[draws.next()];
      means[b] = sum / n;
    }
  });
  std::sort(means.begin(), means.end());
  return {quantile(means, 0.025), quantile(means, 0.975)};
}

const std::vector<std::string>& corrections() {
  static const std::vector<std::string> all = {"holm", "bonferroni", "fdr"};
  return all;
}

std::vector<double> adjusted(std::span<const double> p, const std::string& method) {
  std::string chosen;
  for (const auto& name : corrections()) {
    if (squeezed(name) == squeezed(method)) chosen = name;
  }
  if (chosen.empty()) {
    throw usage_error("no correction '{}'{}: corrections are {}", printable(method),
                      did_you_mean(method, corrections()), fmt::join(corrections(), ", "));
  }
  std::vector<size_t> order;
  for (size_t i = 0; i < p.size(); ++i) {
    if (!std::isnan(p[i])) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] < p[b]; });
  const auto n = static_cast<double>(order.size());
  std::vector<double> out(p.size(), kNan);
  double running = chosen == "fdr" ? 1 : 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (chosen == "holm") {
      const size_t at = order[i];
      running = std::max(running, std::min(1.0, (n - static_cast<double>(i)) * p[at]));
      out[at] = running;
    } else if (chosen == "bonferroni") {
      out[order[i]] = std::min(1.0, n * p[order[i]]);
    } else {  // from the largest down
      const size_t rank = order.size() - i, at = order[rank - 1];
      running = std::min(running, n / static_cast<double>(rank) * p[at]);
      out[at] = running;
    }
  }
  return out;
}

}  // namespace tessera

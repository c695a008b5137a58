#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tessera {

/// Means, deviations and tests of specs/protocol.md section 8. All tests are two-sided.

double mean_of(std::span<const double> values);  ///< NaN for none
/// Sample standard deviation, divisor n - 1; NaN for fewer than two values.
double deviation_of(std::span<const double> values);

/// P(|T| >= |t|) of Student's t with `df` degrees of freedom.
double student_p(double t, double df);
/// The regularised incomplete beta function I_x(a, b), a and b above 0 (continued fraction).
double incomplete_beta(double a, double b, double x);

struct PairedT {
  int64_t n = 0;
  double mean = 0, deviation = 0, t = 0;
  double p = 1;  ///< deviation 0: 1 where the mean is 0, else 0; NaN for fewer than two values
};
PairedT paired_t(std::span<const double> differences);

struct Wilcoxon {
  int64_t n = 0;  ///< differences that are not zero
  double w_plus = 0, w_minus = 0;
  double z = 0;  ///< of the smaller rank sum; 0 where the distribution is exact
  bool exact = false;
  double p = 1;
};
/// Signed ranks: zeros dropped, mid-ranks, exact up to 25 differences, else normal with the
/// variance corrected for ties and no continuity correction.
Wilcoxon wilcoxon(std::span<const double> differences, int64_t exact_up_to = 25);

/// Linear interpolation between the sorted values, q in [0, 1].
double quantile(std::span<const double> sorted, double q);

struct Interval {
  double low = 0, high = 0;
};
/// Percentile interval of the mean, 2.5 % to 97.5 %, over resamples of the values. The same for any
/// number of threads.
Interval bootstrap_mean(std::span<const double> values, uint64_t seed, int64_t resamples = 10000);

/// Adjusted p values, in the order given: "holm", "bonferroni" or "fdr" (Benjamini and Hochberg
/// 1995); NaN stays NaN and does not count. Exit 2 with the nearest name otherwise.
std::vector<double> adjusted(std::span<const double> p, const std::string& method);
const std::vector<std::string>& corrections();

}  // namespace tessera

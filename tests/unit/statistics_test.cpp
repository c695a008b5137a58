#include "tessera/eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tessera/base/error.h"

namespace tessera {
namespace {

// The worked example of specs/protocol.md section 8.
const std::vector<double> kExample = {.5, 0, -.25, 1, .25, 0, .75, .5};

TEST(Statistics, MeanAndSampleDeviation) {
  const std::vector<double> three = {.0564, .0558, .0570};
  EXPECT_NEAR(mean_of(three), .0564, 1e-12);
  EXPECT_NEAR(deviation_of(three), .0006, 1e-12);
  EXPECT_TRUE(std::isnan(deviation_of(std::vector<double>{1.0})));
  EXPECT_TRUE(std::isnan(mean_of({})));
}

TEST(Statistics, PairedTOfTheSpecification) {
  const PairedT t = paired_t(kExample);
  EXPECT_EQ(t.n, 8);
  EXPECT_NEAR(t.mean, .34375, 1e-12);
  EXPECT_NEAR(t.deviation, .42125, 5e-6);
  EXPECT_NEAR(t.t, 2.30804, 5e-6);
  EXPECT_NEAR(t.p, .05434, 5e-6);
}

TEST(Statistics, PairedTWithoutSpread) {
  EXPECT_EQ(paired_t(std::vector<double>{0, 0, 0}).p, 1);
  EXPECT_EQ(paired_t(std::vector<double>{.5, .5}).p, 0);
  EXPECT_TRUE(std::isnan(paired_t(std::vector<double>{.5}).p));
  EXPECT_TRUE(std::isnan(paired_t({}).p));
}

// Values of mpmath 1.2, 30 digits.
TEST(Statistics, StudentAgainstMpmath) {
  struct Case {
    double t, df, p;
  };
  for (const Case& c : {Case{2.0, 1, 0.295167235300867}, Case{-0.5, 3, 0.651447964848151},
                        Case{1.96, 19444, 0.0500100514665341}, Case{10, 5, 0.000170947575742964},
                        Case{40, 8, 1.67857188791458e-10}, Case{1e-3, 2, 0.99929289339559}}) {
    EXPECT_NEAR(student_p(c.t, c.df) / c.p, 1, 1e-9) << c.t << " " << c.df;
  }
  EXPECT_EQ(student_p(std::numeric_limits<double>::infinity(), 4), 0);
}

TEST(Statistics, IncompleteBetaAgainstMpmath) {
  struct Case {
    double a, b, x, value;
  };
  for (const Case& c : {Case{2, 3, .3, 0.3483}, Case{.5, .5, .9, 0.795167235300867},
                        Case{10, 1, .99, 0.904382075008804}, Case{100, .5, .999, 0.65504351632443},
                        Case{.5, 9722, .0001, 0.836813526135203}}) {
    EXPECT_NEAR(incomplete_beta(c.a, c.b, c.x), c.value, 1e-11) << c.a << " " << c.b;
  }
  EXPECT_EQ(incomplete_beta(2, 3, 0), 0);
  EXPECT_EQ(incomplete_beta(2, 3, 1), 1);
}

TEST(Statistics, WilcoxonOfTheSpecification) {
  const Wilcoxon exact = wilcoxon(kExample);
  EXPECT_TRUE(exact.exact);
  EXPECT_EQ(exact.n, 6);
  EXPECT_EQ(exact.w_minus, 1.5);
  EXPECT_EQ(exact.w_plus, 19.5);
  EXPECT_EQ(exact.p, .09375);  // 3 of 64 sign patterns as low, twice
  const Wilcoxon normal = wilcoxon(kExample, 0);
  EXPECT_FALSE(normal.exact);
  EXPECT_NEAR(normal.z, -1.89737, 5e-6);
  EXPECT_NEAR(normal.p, .05778, 5e-6);
}

TEST(Statistics, WilcoxonAtItsEdges) {
  EXPECT_EQ(wilcoxon({}).p, 1);
  EXPECT_EQ(wilcoxon(std::vector<double>{0, 0}).p, 1);
  EXPECT_EQ(wilcoxon(std::vector<double>{1}).p, 1);          // 2 * 1/2
  EXPECT_EQ(wilcoxon(std::vector<double>{1, 2, 3}).p, .25);  // 2 * 1/8
  EXPECT_EQ(wilcoxon(std::vector<double>{1, -1}).p, 1);
  std::vector<double> many;
  for (int i = 1; i <= 26; ++i) many.push_back(i % 2 == 0 ? i : -i);
  EXPECT_FALSE(wilcoxon(many).exact);
  many.pop_back();
  EXPECT_TRUE(wilcoxon(many).exact);
  // W+ = 156 of 25 ranks: all 2^25 sign patterns counted in exact fractions, and erfc, in Python.
  EXPECT_NEAR(wilcoxon(many).p, 0.8739878535270691, 1e-13);
  EXPECT_NEAR(wilcoxon(many, 0).p, 0.861162196946825, 1e-13);
}

TEST(Statistics, HolmOfTheSpecification) {
  const std::vector<double> p = {.01, .04, .03, .005}, wanted = {.03, .06, .06, .02};
  const auto found = adjusted(p, "holm");
  for (size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(found[i], wanted[i], 1e-12);
}

TEST(Statistics, OtherCorrectionsByHand) {
  const std::vector<double> p = {.01, .04, .03, .005};
  const std::vector<double> bonferroni = {.04, .16, .12, .02}, fdr = {.02, .04, .04, .02};
  for (size_t i = 0; i < p.size(); ++i) {
    EXPECT_NEAR(adjusted(p, "Bonferroni")[i], bonferroni[i], 1e-12);
    EXPECT_NEAR(adjusted(p, "fdr")[i], fdr[i], 1e-12);
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto with_nan = adjusted(std::vector<double>{.01, nan, .9}, "holm");
  EXPECT_NEAR(with_nan[0], .02, 1e-12);
  EXPECT_TRUE(std::isnan(with_nan[1]));
  EXPECT_NEAR(with_nan[2], .9, 1e-12);
  EXPECT_THROW(adjusted(p, "hlm"), InputError);
}

TEST(Statistics, Quantiles) {
  const std::vector<double> sorted = {1, 2, 3, 4};
  EXPECT_EQ(quantile(sorted, 0), 1);
  EXPECT_EQ(quantile(sorted, 1), 4);
  EXPECT_NEAR(quantile(sorted, .5), 2.5, 1e-12);
  EXPECT_NEAR(quantile(sorted, .025), 1.075, 1e-12);
}

TEST(Statistics, BootstrapIntervalIsSeededAndNearTheNormalOne) {
  std::vector<double> values;
  for (int i = 0; i < 400; ++i) values.push_back((i * 37 % 100) / 100.0);
  const Interval a = bootstrap_mean(values, 1), again = bootstrap_mean(values, 1),
                 other = bootstrap_mean(values, 2);
  EXPECT_EQ(a.low, again.low);
  EXPECT_EQ(a.high, again.high);
  EXPECT_NE(a.low, other.low);
  const double half = 1.96 * deviation_of(values) / std::sqrt(400.0);
  EXPECT_NEAR(a.low, mean_of(values) - half, .002);
  EXPECT_NEAR(a.high, mean_of(values) + half, .002);
  const Interval constant = bootstrap_mean(std::vector<double>{.25, .25}, 1);
  EXPECT_EQ(constant.low, .25);
  EXPECT_EQ(constant.high, .25);
}

}  // namespace
}  // namespace tessera

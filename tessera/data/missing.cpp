#include <algorithm>
#include <string>

#include "tessera/base/error.h"
#include "tessera/data/dataset.h"

namespace tessera {
namespace {

/// Mean of the rows that items have, [width].
std::vector<double> mean_row(const Feature& feature) {
  std::vector<double> sum(feature.width(), 0.0);
  std::vector<float> row(feature.width());
  const auto* row_of_item = feature.row_of_item.const_data_ptr<int32_t>();
  int64_t n = 0;
  for (int64_t item = 0; item < feature.n_items(); ++item) {
    if (row_of_item[item] < 0) continue;
    feature.rows.read_row(row_of_item[item], row.data());
    for (size_t k = 0; k < row.size(); ++k) sum[k] += row[k];
    ++n;
  }
  if (n > 0) {
    for (double& value : sum) value /= static_cast<double>(n);
  }
  return sum;
}

/// Fills row i of the missing items with the mean of the present rows that share train users with
/// it, weighted by the number of shared users; `rest` where none does.
void fill_from_neighbours(const TrainView& data, const Feature& feature,
                          const std::vector<double>& rest, float* rows) {
  const int64_t width = feature.width();
  const Interactions users_of = transposed(data.train_distinct, data.n_items);
  std::vector<int64_t> shared(data.n_items, 0);
  std::vector<int32_t> touched;
  std::vector<double> sum(width);
  for (int64_t item = 0; item < data.n_items; ++item) {
    if (feature.has(item)) continue;
    touched.clear();
    for (const int32_t user : users_of.of(item)) {
      for (const int32_t other : data.train_distinct.of(user)) {
        if (!feature.has(other)) continue;
        if (shared[other]++ == 0) touched.push_back(other);
      }
    }
    std::sort(touched.begin(), touched.end());
    std::fill(sum.begin(), sum.end(), 0.0);
    double total = 0.0;
    for (const int32_t other : touched) {
      const auto weight = static_cast<double>(shared[other]);
      const float* row = rows + other * width;
      for (int64_t k = 0; k < width; ++k) sum[k] += weight * row[k];
      total += weight;
      shared[other] = 0;
    }
    for (int64_t k = 0; k < width; ++k) {
      rows[item * width + k] = static_cast<float>(total > 0 ? sum[k] / total : rest[k]);
    }
  }
}

}  // namespace

torch::Tensor filled(const TrainView& data, const Feature& feature, const std::string& policy) {
  const int64_t n_missing = feature.n_items() - feature.present().sum().item<int64_t>();
  torch::Tensor rows = feature.all();
  if (policy == "error") {
    if (n_missing > 0) {
      throw data_error(
          "feature '{}': {} of {} items have no row and missing = error; give their rows, or "
          "choose "
          "missing = zero, mean or neighbours",
          feature.name, n_missing, feature.n_items());
    }
    return rows;
  }
  if (policy != "zero" && policy != "mean" && policy != "neighbours") {
    throw usage_error("no missing policy '{}'{}: wanted zero, mean, neighbours or error",
                      printable(policy),
                      did_you_mean(policy, {"zero", "mean", "neighbours", "error"}));
  }
  if (n_missing == 0 || policy == "zero") return rows;
  const std::vector<double> mean = mean_row(feature);
  auto* to = rows.mutable_data_ptr<float>();
  if (policy == "neighbours") {
    fill_from_neighbours(data, feature, mean, to);
    return rows;
  }
  for (int64_t item = 0; item < feature.n_items(); ++item) {
    if (feature.has(item)) continue;
    std::copy(mean.begin(), mean.end(), to + item * feature.width());
  }
  return rows;
}

std::vector<torch::Tensor> rows_of_new_items(const TrainView& data,
                                             const std::vector<Feature>& given, int64_t n,
                                             const std::string& policy) {
  std::vector<torch::Tensor> out;
  std::vector<std::string> names;
  bool any = false;
  for (const Feature& trained : data.features) {
    names.push_back(trained.name);
    const auto of = std::find_if(given.begin(), given.end(),
                                 [&](const Feature& each) { return each.name == trained.name; });
    torch::Tensor rows = torch::zeros({n, trained.width()});
    torch::Tensor lacking = torch::ones({n}, torch::kBool);
    if (of != given.end()) {
      if (of->width() != trained.width() || of->n_items() != n) {
        throw data_error("feature '{}' of the new items is {} x {}, wanted {} x {}", trained.name,
                         of->n_items(), of->width(), n, trained.width());
      }
      any = true;
      rows = of->all();
      lacking = of->present().logical_not();
    }
    if (policy != "zero" && lacking.any().item<bool>()) {
      if (policy == "error") {
        throw data_error("feature '{}': {} of {} new items have no row and missing = error",
                         trained.name, lacking.sum().item<int64_t>(), n);
      }
      const auto mean = torch::tensor(mean_row(trained), torch::kFloat64).to(torch::kFloat);
      rows = torch::where(lacking.unsqueeze(1), mean, rows);
    }
    out.push_back(rows);
  }
  if (!any) {
    throw data_error("the new items have none of the features {}", fmt::join(names, ", "));
  }
  return out;
}

}  // namespace tessera

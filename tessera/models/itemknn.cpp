

#include <algorithm>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/model/common_settings.h"
#include "tessera/model/registry.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/topk.h"

namespace tessera {
namespace {

/// ItemKNN: score(u, j) = sum of s_ij over the user's items i, where i is kept for j.
///   interactions: s_ij = c_ij / (sqrt(n_i n_j) + shrink), the k largest kept per target j;
///   content:      s_ij = f_i . f_j / (|f_i||f_j| + shrink), f the raw features side by side, the k
///                 largest kept per source i.
/// s_ii = 0; equal similarities by the lower index.
class ItemKnn : public Model {
 public:
  struct Config {
    std::string similarity = "interactions";
    int64_t k = 100;
    double shrink = 10;
    std::string neighbours_of = "target";
    std::string missing = "zero";

    void describe(Fields& f) {
      f.choice("similarity", similarity, "what makes two items alike", {"interactions", "content"});
      f.add("k", k, "neighbours kept (content: 10)", at_least(1));
      f.add("shrink", shrink, "added to the denominator; for unit-norm features use 0",
            at_least(0));
      f.choice("neighbours_of", neighbours_of,
               "whose k neighbours are kept: the scored item's, or the consumed item's",
               {"target", "source"});
      common::missing(f, missing);
      f.preset("similarity", "content", {{"k", 10}, {"neighbours_of", "source"}});
    }

    static SearchSpace search() {
      return {{"k", {10, 20, 50, 100, 200}}, {"shrink", {0, 10, 100}}};
    }
  };

  ItemKnn(const Config& config, const Context& context)
      : Model(context), config_(config), content_(config.similarity == "content") {
    if (content_ && data_.features.empty()) {
      throw data_error(
          "ItemKNN with similarity = content needs item features and '{}' has none selected; add "
          "some with 'tessera import --feature NAME=FILE'",
          data_.name);
    }
    offsets_ = torch::zeros({data_.n_items + 1}, torch::kInt64);
  }

  Abilities abilities() const override {
    return {.uses_features = content_,
            .score_reads_features = false,
            .ranks_cold_items = content_,
            .takes_histories = true};
  }

  void prepare(const Watch&) override {
    Lists lists = content_ ? content_lists() : interaction_lists();
    const bool lists_are_by_source = config_.neighbours_of == "source";
    store(lists_are_by_source ? lists : turned(lists));
  }

  void state(State& state) override {
    state.add("neighbour_offsets", offsets_, Role::scoring);
    state.add("neighbour_items", targets_, Role::scoring);
    state.add("neighbour_values", values_, Role::scoring);
  }

 protected:
  std::shared_ptr<const Scorer> make_scorer() override {
    check_lists();
    return Model::make_scorer();
  }
  torch::Tensor whole_scores(const Queries& queries) const override {
    const int64_t n = queries.size();
    torch::Tensor out = torch::zeros({n, data_.n_items});
    parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> sums(data_.n_items);
      for (int64_t row = begin; row < end; ++row) {
        std::fill(sums.begin(), sums.end(), 0.0);
        for (const int32_t source : history_of(queries, row)) {
          const auto* offset = offsets_.const_data_ptr<int64_t>();
          for (int64_t e = offset[source]; e < offset[source + 1]; ++e) {
            sums[targets_.const_data_ptr<int32_t>()[e]] += values_.const_data_ptr<double>()[e];
          }
        }
        auto* to = out.mutable_data_ptr<float>() + row * data_.n_items;
        for (int64_t j = 0; j < data_.n_items; ++j) to[j] = static_cast<float>(sums[j]);
      }
    });
    return out;
  }

 private:
  using List = std::vector<std::pair<int32_t, double>>;  // other item, similarity
  using Lists = std::vector<List>;

  /// Lists may come from a file: exit 3 unless they name items.
  void check_lists() {
    if (checked_) return;
    const int64_t n = targets_.defined() ? targets_.numel() : 0;
    bool fits = offsets_[0].item<int64_t>() == 0 && offsets_[-1].item<int64_t>() == n &&
                offsets_.diff().ge(0).all().item<bool>();
    if (fits && n > 0) {
      fits = targets_.scalar_type() == torch::kInt32 && targets_.dim() == 1 &&
             targets_.ge(0).logical_and(targets_.lt(data_.n_items)).all().item<bool>() &&
             values_.defined() && values_.scalar_type() == torch::kFloat64 &&
             values_.sizes() == targets_.sizes();
    }
    if (!fits)
      throw data_error("ItemKNN: the stored neighbours do not fit the {} items", data_.n_items);
    checked_ = true;
  }

  /// The items that speak for a query: its history, else the user's train items; each once.
  std::vector<int32_t> history_of(const Queries& queries, int64_t row) const {
    std::vector<int32_t> items;
    if (queries.histories.defined()) {
      const auto* offset = queries.histories.offsets.const_data_ptr<int64_t>();
      const auto* all = queries.histories.items.const_data_ptr<int32_t>();
      items.assign(all + offset[row], all + offset[row + 1]);
      std::sort(items.begin(), items.end());
      items.erase(std::unique(items.begin(), items.end()), items.end());
    }
    const int64_t user =
        queries.users.defined() ? queries.users.const_data_ptr<int64_t>()[row] : -1;
    if (items.empty() && user >= 0) {
      const auto own = data_.train_distinct.of(user);
      items.assign(own.begin(), own.end());
    }
    return items;
  }

  void keep_largest(List& list) const {
    const auto before = [](const auto& a, const auto& b) {
      return a.second != b.second ? a.second > b.second : a.first < b.first;
    };
    const auto k = std::min<size_t>(config_.k, list.size());
    std::partial_sort(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(k), list.end(),
                      before);
    list.resize(k);
  }

  Lists interaction_lists() const {
    const auto users_of = transposed(data_.train_distinct, data_.n_items);
    Lists lists(data_.n_items);
    parallel_for(0, data_.n_items, 16, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> common(data_.n_items, 0), touched;
      for (int64_t j = begin; j < end; ++j) {
        touched.clear();
        for (const int32_t user : users_of.of(j)) {
          for (const int32_t i : data_.train_distinct.of(user)) {
            if (common[i]++ == 0) touched.push_back(i);
          }
        }
        const auto n_j = static_cast<double>(users_of.of(j).size());
        List& list = lists[j];
        for (const int32_t i : touched) {
          const auto n_i = static_cast<double>(users_of.of(i).size());
          if (i != j) list.emplace_back(i, common[i] / (std::sqrt(n_i * n_j) + config_.shrink));
          common[i] = 0;
        }
        keep_largest(list);
      }
    });
    return lists;
  }

  Lists content_lists() const {
    std::vector<torch::Tensor> parts;
    for (const auto& feature : data_.features) {
      parts.push_back(filled(data_, feature, config_.missing));
    }
    const torch::Tensor f = torch::cat(parts, 1);
    const torch::Tensor norms = f.norm(2, 1);
    const int64_t k = std::min<int64_t>(config_.k, data_.n_items - 1);
    Lists lists(data_.n_items);
    const int64_t block = std::max<int64_t>(1, (int64_t{16} << 20) / data_.n_items);
    for (int64_t begin = 0; begin < data_.n_items && k > 0; begin += block) {
      const int64_t n = std::min(block, data_.n_items - begin);
      const auto own = torch::arange(begin, begin + n, torch::kInt32);  // s_ii is left out
      auto denominator =
          norms.narrow(0, begin, n).unsqueeze(1) * norms.unsqueeze(0) + config_.shrink;
      const auto s = f.narrow(0, begin, n).matmul(f.t()) / denominator.clamp_min(1e-12);
      const TopK top = top_k_scores(s, RankMask{torch::arange(n + 1, torch::kInt64), own, {}}, k);
      for (int64_t row = 0; row < n; ++row) {
        for (int64_t r = 0; r < k; ++r) {
          const int32_t item = top.items.const_data_ptr<int32_t>()[row * k + r];
          const float value = top.scores.const_data_ptr<float>()[row * k + r];
          if (item >= 0 && value != 0) lists[begin + row].emplace_back(item, value);
        }
      }
    }
    return lists;
  }

  static Lists turned(const Lists& lists) {
    Lists out(lists.size());
    for (size_t j = 0; j < lists.size(); ++j) {
      for (const auto& [i, value] : lists[j]) out[i].emplace_back(static_cast<int32_t>(j), value);
    }
    return out;
  }

  void store(const Lists& by_source) {
    std::vector<int64_t> offsets = {0};
    std::vector<int32_t> targets;
    std::vector<double> values;
    for (const List& list : by_source) {
      for (const auto& [item, value] : list) {
        targets.push_back(item);
        values.push_back(value);
      }
      offsets.push_back(static_cast<int64_t>(targets.size()));
    }
    offsets_ = torch::tensor(offsets, torch::kInt64);
    targets_ = torch::tensor(targets, torch::kInt32);
    values_ = torch::tensor(values, torch::kFloat64);
  }

  const Config config_;
  const bool content_;
  bool checked_ = false;
  torch::Tensor offsets_, targets_, values_;  // by consumed item: int64 [I + 1], int32, float64
};

const RegisterModel<ItemKnn> registered{
    "ItemKNN",
    "ItemKNN, collaborative or by content",
    {{"ItemKNNCBF", {{"similarity", "content", "model name"}}}, {"ItemCF", {}}}};

}  // namespace
}  // namespace tessera

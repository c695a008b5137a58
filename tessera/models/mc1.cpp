#include <algorithm>
#include <bit>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/model/registry.h"
#include "tessera/model/sequence_model.h"

namespace tessera {
namespace {

/// MC1 (sequential section 5.1): how often item j followed the history's last item in train rows;
/// ties by train count, then by index. The bar that a sequence model must clear.
class Mc1 : public SequenceModel {
 public:
  struct Config {
    void describe(Fields&) {}
  };

  Mc1(const Config&, const Context& context)
      : SequenceModel({}, context), offsets_(torch::zeros({data_.n_items + 1}, torch::kInt64)) {}

  std::vector<ParameterGroup> parameter_groups() override { return {}; }

  void prepare(const Watch&) override {
    std::vector<std::vector<int32_t>> after(static_cast<size_t>(data_.n_items));
    for (int64_t user = 0; user < data_.n_users; ++user) {
      const auto row = data_.train.of(user);
      for (size_t t = 1; t < row.size(); ++t) after[row[t - 1]].push_back(row[t]);
    }
    std::vector<int64_t> offsets = {0};
    std::vector<int32_t> items, counts;
    for (auto& next : after) {
      std::sort(next.begin(), next.end());
      for (size_t i = 0; i < next.size(); ++i) {
        if (i > 0 && next[i] == next[i - 1]) {
          ++counts.back();
        } else {
          items.push_back(next[i]);
          counts.push_back(1);
        }
      }
      offsets.push_back(static_cast<int64_t>(items.size()));
    }
    offsets_ = torch::tensor(offsets, torch::kInt64);
    items_ = torch::tensor(items, torch::kInt32);
    counts_ = torch::tensor(counts, torch::kInt32);
  }

  torch::Tensor whole_scores(const Queries& queries) const override {
    const auto popularity = ties();
    const int64_t n = queries.size();
    torch::Tensor out = popularity.expand({n, data_.n_items}).contiguous();
    auto* to = out.mutable_data_ptr<float>();
    const auto* offset = offsets_.const_data_ptr<int64_t>();
    for (int64_t row = 0; row < n; ++row, to += data_.n_items) {
      int32_t last = -1;
      if (queries.histories.defined()) {
        const auto* begin = queries.histories.offsets.const_data_ptr<int64_t>();
        if (begin[row] < begin[row + 1]) {
          last = queries.histories.items.const_data_ptr<int32_t>()[begin[row + 1] - 1];
        }
      } else if (const int64_t user = queries.users.const_data_ptr<int64_t>()[row]; user >= 0) {
        const auto history = data_.train.of(user);
        if (!history.empty()) last = history.back();
      }
      if (last < 0) continue;
      for (int64_t e = offset[last]; e < offset[last + 1]; ++e) {
        to[items_.const_data_ptr<int32_t>()[e]] +=
            static_cast<float>(counts_.const_data_ptr<int32_t>()[e]);
      }
    }
    return out;
  }

  void state(State& state) override {
    state.add("bigram_offsets", offsets_, Role::scoring);
    state.add("bigram_items", items_, Role::scoring);
    state.add("bigram_counts", counts_, Role::scoring);
  }

 protected:
  std::shared_ptr<const Scorer> make_scorer() override {
    check();
    return Model::make_scorer();
  }
  torch::Tensor encode(const torch::Tensor&, const Pass&) override { return {}; }
  torch::Tensor candidates() override { return {}; }

 private:
  /// Ranks of the train counts as multiples of a power of two below 1: exact beside a bigram count
  /// while count times the number of ranks stays below 2^24.
  torch::Tensor ties() const {
    const auto counts = item_counts(data_.train, data_.n_items);
    const auto [distinct, rank, repeats] = torch::_unique2(counts, true, true, false);
    const auto size = std::bit_ceil(static_cast<uint64_t>(distinct.size(0)));
    return (rank.to(torch::kDouble) / static_cast<double>(size)).to(torch::kFloat);
  }

  /// Lists may come from a file: exit 3 unless they name items.
  void check() {
    if (checked_) return;
    const int64_t n = items_.defined() ? items_.numel() : 0;
    bool fits = offsets_.dim() == 1 && offsets_.size(0) == data_.n_items + 1 &&
                offsets_.scalar_type() == torch::kInt64 && offsets_[0].item<int64_t>() == 0 &&
                offsets_[-1].item<int64_t>() == n && offsets_.diff().ge(0).all().item<bool>();
    if (fits && n > 0) {
      fits = items_.scalar_type() == torch::kInt32 && items_.dim() == 1 &&
             items_.ge(0).logical_and(items_.lt(data_.n_items)).all().item<bool>() &&
             counts_.defined() && counts_.scalar_type() == torch::kInt32 &&
             counts_.sizes() == items_.sizes();
    }
    if (!fits) throw data_error("MC1: the stored bigrams do not fit {} items", data_.n_items);
    checked_ = true;
  }

  bool checked_ = false;
  torch::Tensor offsets_, items_, counts_;  // by last item: int64 [N + 1], int32, int32
};

const RegisterModel<Mc1> registered{"MC1", "MC1, what followed the last item in train rows"};

}  // namespace
}  // namespace tessera

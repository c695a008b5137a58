#include "tessera/eval/sampled.h"

#include <algorithm>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/eval/ranking.h"
#include "tessera/ops/device.h"

namespace tessera {
namespace {

std::vector<int32_t> held_out(const Dataset& data, Split split, int64_t user) {
  const auto row = rows_of(data, split).of(user);
  std::vector<int32_t> out(row.begin(), row.end());
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace

SampledValues sampled_values(const std::vector<int64_t>& hits, int64_t n_held,
                             const SampledOptions& options) {
  const auto gain = [](int64_t rank) { return 1 / std::log2(static_cast<double>(rank) + 1); };
  double dcg = 0, ideal = 0;
  for (const int64_t rank : hits) dcg += gain(rank);
  const int64_t n_ideal = options.ideal_all ? n_held : std::min(n_held, options.k);
  for (int64_t rank = 1; rank <= n_ideal; ++rank) ideal += gain(rank);
  const auto n = static_cast<double>(hits.size());
  return {n / static_cast<double>(options.k), n_held > 0 ? n / static_cast<double>(n_held) : 0,
          ideal > 0 ? dcg / ideal : 0};
}

std::vector<int32_t> sampled_candidates(const Dataset& data, Split split, int64_t user,
                                        const SampledOptions& options) {
  std::vector<bool> known(static_cast<size_t>(data.n_items));
  for (const Interactions* rows :
       {&data.train, &data.valid, &data.test, &data.history, &data.seen}) {
    if (!rows->offsets.defined()) continue;
    for (const int32_t item : rows->of(user)) known[static_cast<size_t>(item)] = true;
  }
  std::vector<int32_t> out = held_out(data, split, user), others;
  for (int32_t item = 0; item < static_cast<int32_t>(data.n_items); ++item) {
    if (!known[static_cast<size_t>(item)]) others.push_back(item);
  }
  const auto wanted = static_cast<size_t>(std::clamp<int64_t>(
      options.total - static_cast<int64_t>(out.size()), 0, static_cast<int64_t>(others.size())));
  // The first draws of a shuffle.
  const Random random(options.seed, "sampled");
  uint32_t draw = 0;
  for (size_t i = 0; i < wanted; ++i) {
    const uint32_t j = random.below(static_cast<uint32_t>(others.size() - i), 0,
                                    static_cast<uint64_t>(user), draw);
    std::swap(others[i], others[i + j]);
    out.push_back(others[i]);
  }
  std::sort(out.begin(), out.end());
  return out;
}

SampledResult evaluate_sampled(Model& model, const Dataset& data, const Protocol& protocol,
                               Split split, const SampledOptions& options) {
  std::vector<int64_t> users;
  for (int64_t user = 0; user < data.n_users; ++user) {
    if (!held_out(data, split, user).empty()) users.push_back(user);
  }
  if (users.empty()) throw data_error("'{}' has no held-out rows to sample around", data.name);
  const ReferenceOps plain(model.settings().reference());
  const auto scorer = model.freeze();
  const auto block = static_cast<size_t>(
      std::clamp<int64_t>((int64_t{64} << 20) / (4 * std::max<int64_t>(1, data.n_items)), 1, 4096));
  SampledValues sum;
  for (size_t begin = 0; begin < users.size(); begin += block) {
    const size_t end = std::min(users.size(), begin + block);
    const std::vector<int64_t> part(users.begin() + static_cast<std::ptrdiff_t>(begin),
                                    users.begin() + static_cast<std::ptrdiff_t>(end));
    const auto scores = scorer->scores(make_queries(*scorer, data, protocol, split, part))
                            .to(torch::kFloat)
                            .contiguous();
    for (size_t row = 0; row < part.size(); ++row) {
      const float* score =
          scores.const_data_ptr<float>() + static_cast<int64_t>(row) * data.n_items;
      auto list = sampled_candidates(data, split, part[row], options);
      const auto k = std::min(list.size(), static_cast<size_t>(options.k));
      std::partial_sort(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(k), list.end(),
                        [score](int32_t a, int32_t b) {
                          return score[a] > score[b] || (score[a] == score[b] && a < b);
                        });
      const auto held = held_out(data, split, part[row]);
      std::vector<int64_t> hits;
      for (size_t r = 0; r < k; ++r) {
        if (std::binary_search(held.begin(), held.end(), list[r])) {
          hits.push_back(static_cast<int64_t>(r) + 1);
        }
      }
      const auto values = sampled_values(hits, static_cast<int64_t>(held.size()), options);
      sum.precision += values.precision;
      sum.recall += values.recall;
      sum.ndcg += values.ndcg;
    }
  }
  const auto n = static_cast<double>(users.size());
  return {options,
          split_name(split),
          static_cast<int64_t>(users.size()),
          {{fmt::format("recall@{}", options.k), sum.recall / n},
           {fmt::format("ndcg@{}", options.k), sum.ndcg / n},
           {fmt::format("precision@{}", options.k), sum.precision / n}}};
}

Json SampledResult::json() const {
  Json values = Json::object();
  for (const auto& [metric, value] : metrics) values[metric] = value;
  return {{"name", name()},       {"split", split},     {"k", options.k},   {"ndcg_ideal", ideal()},
          {"seed", options.seed}, {"n_users", n_users}, {"metrics", values}};
}

}  // namespace tessera

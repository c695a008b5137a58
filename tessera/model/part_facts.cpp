#include "tessera/model/part_facts.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>

#include "tessera/nn/part_net.h"
#include "tessera/ops/pca.h"

namespace tessera {
namespace {

/// Weights of attention over many pairs of a user and an item, beside those of uniform attention
/// over the same parts.
struct AttentionSums {
  static constexpr int64_t kBins = 20;
  const char* name;
  double n = 0, common_wins = 0;
  torch::Tensor by_part, uniform, bins;  ///< float64 [K], [K], [kBins]

  AttentionSums(const char* name, int64_t n_parts)
      : name(name),
        by_part(torch::zeros({n_parts}, torch::kDouble)),
        uniform(torch::zeros({n_parts}, torch::kDouble)),
        bins(torch::zeros({kBins}, torch::kDouble)) {}
  /// all [K, n_users * n_items]: weights, the first `n_common` rows of common parts; of the chosen
  /// pairs only. even float64 [K, n_items]: uniform attention to the open parts of an item
  void add(const torch::Tensor& all, const torch::Tensor& pairs, int64_t n_common,
           const torch::Tensor& even) {
    if (pairs.size(0) == 0) return;
    const auto w = all.index_select(1, pairs);
    const auto common = w.slice(0, 0, n_common).sum(0);
    const auto specific = w.slice(0, n_common).sum(0);
    n += static_cast<double>(w.size(1));
    common_wins += (common > specific).sum().item<double>();
    by_part += w.sum(1, /*keepdim=*/false, torch::kDouble);
    uniform += even.mv(
        torch::bincount(pairs.remainder(even.size(1)), {}, even.size(1)).to(torch::kDouble));
    bins += torch::histc(common.clamp(0, 1), kBins, 0, 1).to(torch::kDouble);
  }

  Json facts(const std::vector<std::string>& modalities) const {
    const auto n_common = static_cast<int64_t>(modalities.size());
    const auto mean = by_part / n, even = uniform / n;
    const auto numbers = [](const torch::Tensor& x) {
      const auto of = x.contiguous();
      return std::vector<double>(of.const_data_ptr<double>(),
                                 of.const_data_ptr<double>() + of.numel());
    };
    const auto common = [&](const torch::Tensor& of) {
      return of.slice(0, 0, n_common).sum().item<double>();
    };
    Json out = {{"name", name},
                {"n", static_cast<int64_t>(n)},
                {"common", common(mean)},
                {"uniform", common(even)},
                {"common_wins", common_wins / n},
                {"bins", numbers(bins / n)},
                {"parts", numbers(mean)},
                {"modalities", Json::array()}};
    for (int64_t m = 0; m < n_common; ++m) {
      const auto share = [&](const torch::Tensor& of) {
        return (of[m] + of[n_common + m]).item<double>();
      };
      out["modalities"].push_back({{"name", modalities[static_cast<size_t>(m)]},
                                   {"share", share(mean)},
                                   {"uniform", share(even)}});
    }
    return out;
  }
};

/// Up to `most` items that have every modality, drawn at random.
std::vector<int64_t> whole_items(const ItemParts& parts, const Random& random, size_t most) {
  auto all = parts.present[0];
  for (const auto& present : parts.present) all = all.logical_and(present);
  const auto places = all.nonzero().squeeze(1).contiguous();
  std::vector<int64_t> items(places.const_data_ptr<int64_t>(),
                             places.const_data_ptr<int64_t>() + places.numel());
  random.shuffle(items, 0);
  items.resize(std::min(items.size(), most));
  return items;
}

}  // namespace

Json attention_facts(const ItemParts& parts, const TrainView& data, const Interactions& held,
                     const Random& random) {
  constexpr int64_t kList = 20, kMostPairs = 200'000'000, kBlock = 2'000'000;
  std::vector<int64_t> chosen;
  for (int64_t u = 0; u < data.n_users; ++u) {
    if (!data.train.of(u).empty()) chosen.push_back(u);
  }
  const size_t n_known = chosen.size();
  if (static_cast<int64_t>(n_known) * data.n_items > kMostPairs) {
    random.stream("report.users").shuffle(chosen, 0);
    chosen.resize(static_cast<size_t>(std::max<int64_t>(1, kMostPairs / data.n_items)));
  }
  const auto& [all_users, ids, rows, open] = parts.factors;
  const auto users = torch::tensor(chosen, torch::kInt64);
  auto even = open.defined() ? open.t().to(torch::kDouble)
                             : torch::ones({parts.n_parts(), data.n_items}, torch::kDouble);
  even = even / even.sum(0, true).clamp_min(1);
  const int64_t k = std::min(kList, data.n_items), n_common = parts.n_modalities();
  const int64_t step = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, data.n_items));
  std::vector<AttentionSums> sets;
  for (const char* name : {"hits", "lists", "candidates"}) sets.emplace_back(name, parts.n_parts());
  for (int64_t begin = 0; begin < users.size(0); begin += step) {
    const auto vectors =
        all_users.index_select(0, users.slice(0, begin, std::min(users.size(0), begin + step)));
    const int64_t n = vectors.size(0);
    auto scores = part_scores(vectors, ids, rows, open);
    auto candidate = torch::ones({n, data.n_items}, torch::kBool);
    auto* free = candidate.mutable_data_ptr<bool>();
    for (int64_t row = 0; row < n; ++row) {
      for (const int32_t item : data.train.of(chosen[static_cast<size_t>(begin + row)])) {
        free[row * data.n_items + item] = false;
      }
    }
    scores.masked_fill_(candidate.logical_not(), -1e30F);
    const auto lists = std::get<1>(scores.topk(k, 1)).contiguous();
    const auto* item = lists.const_data_ptr<int64_t>();
    std::vector<int64_t> hits, listed;  // places in the block of users x items
    for (int64_t row = 0; row < n; ++row) {
      const int64_t user = chosen[static_cast<size_t>(begin + row)];
      const auto held_out = user < held.n_users() ? held.of(user) : std::span<const int32_t>();
      for (int64_t r = 0; r < k; ++r) {
        const int64_t i = item[row * k + r], place = row * data.n_items + i;
        if (!free[place]) continue;  // a user who has nearly all items
        listed.push_back(place);
        if (std::find(held_out.begin(), held_out.end(), static_cast<int32_t>(i)) !=
            held_out.end()) {
          hits.push_back(place);
        }
      }
    }
    const auto w = part_weights(vectors, rows, open).flatten(1);
    sets[0].add(w, torch::tensor(hits, torch::kInt64), n_common, even);
    sets[1].add(w, torch::tensor(listed, torch::kInt64), n_common, even);
    sets[2].add(w, candidate.flatten().nonzero().squeeze(1), n_common, even);
  }
  Json out = {{"list", k},
              {"n_users", chosen.size()},
              {"n_known", n_known},
              {"names", parts.names},
              {"sets", Json::array()}};
  for (const auto& set : sets) {
    if (set.n > 0) out["sets"].push_back(set.facts(parts.modalities));
  }
  return out;
}

Json picture_facts(const ItemParts& parts, const TrainView& data, const Random& random) {
  const auto items = whole_items(parts, random.stream("report.picture"), 500);
  const auto n = static_cast<int64_t>(items.size());
  if (n < 3) return Json::object();
  const auto chosen = parts.factors.parts.index_select(0, torch::tensor(items, torch::kInt64));
  const auto flat = chosen.transpose(0, 1).reshape({parts.n_parts() * n, -1});
  const Pca pca = fit_pca(flat, 2, random.stream("report.pca"));
  if (pca.axes.size(0) < 2) return Json::object();
  const auto points =
      (pca.transform(flat) * pca.scale).reshape({parts.n_parts(), n, 2}).contiguous();
  const auto* at = points.const_data_ptr<double>();
  const auto rounded = [](double value) { return std::round(value * 1e4) / 1e4; };
  Json out = {{"items", Json::array()},
              {"explained", {pca.explained[0].item<double>(), pca.explained[1].item<double>()}},
              {"parts", Json::array()},
              {"n_modalities", parts.n_modalities()}};
  for (const int64_t item : items) out["items"].push_back(std::string(data.item_ids[item]));
  for (const auto& name : parts.names) {
    Json of = Json::array();
    for (int64_t i = 0; i < n; ++i, at += 2) of.push_back({rounded(at[0]), rounded(at[1])});
    out["parts"].push_back({{"name", name}, {"points", of}});
  }
  return out;
}

Json neighbour_facts(const ItemParts& parts, const TrainView& data, const Random& random) {
  constexpr int64_t kNearest = 5;
  constexpr size_t kItems = 24;
  struct Kind {
    std::string name;
    torch::Tensor rows, there;  // float [n_items, d], bool [n_items]
  };
  const auto unit = [](const torch::Tensor& x) {
    return x / x.square().sum(1, true).sqrt().clamp_min(1e-12);
  };
  const auto& tokens = parts.factors.parts;
  std::vector<torch::Tensor> first;
  auto any = parts.present[0];
  for (int64_t m = 0; m < parts.n_modalities(); ++m) {
    first.push_back(tokens.select(1, m));
    any = any.logical_or(parts.present[static_cast<size_t>(m)]);
  }
  std::vector<Kind> kinds = {
      {parts.divided() ? "common" : "whole", unit(mean_common(first, parts.present)), any}};
  for (int64_t k = parts.n_modalities(); k < parts.n_parts(); ++k) {
    kinds.push_back({parts.names[static_cast<size_t>(k)], unit(tokens.select(1, k)),
                     parts.present[static_cast<size_t>(k - parts.n_modalities())]});
  }
  Json out = {{"kinds", Json::array()}, {"items", Json::array()}};
  for (const auto& kind : kinds) out["kinds"].push_back(kind.name);
  for (const int64_t of : whole_items(parts, random.stream("report.neighbours"), kItems)) {
    Json lists = Json::array();
    for (const auto& kind : kinds) {
      auto cosines = kind.rows.slice(0, of, of + 1).matmul(kind.rows.t())[0];
      cosines.masked_fill_(kind.there.logical_not(), -2);
      const int64_t n = std::min(kNearest, kind.there.sum().item<int64_t>() - 1);
      cosines[of] = -2;
      const auto best = std::get<1>(cosines.topk(n)).contiguous();
      Json list = Json::array();
      for (int64_t j = 0; j < n; ++j) {
        list.push_back(std::string(data.item_ids[best.const_data_ptr<int64_t>()[j]]));
      }
      lists.push_back(list);
    }
    out["items"].push_back({{"item", std::string(data.item_ids[of])}, {"lists", lists}});
  }
  return out;
}

Json overlap_facts(const ItemParts& parts) {
  Json out = Json::array();
  for (int64_t m = 0; m < parts.n_modalities(); ++m) {
    const auto items = parts.present[static_cast<size_t>(m)].nonzero().squeeze(1);
    if (items.size(0) < 8) continue;
    const auto of = parts.factors.parts.index_select(0, items);
    const double value =
        overlap(of.select(1, m), of.select(1, parts.n_modalities() + m)).item<double>();
    out.push_back({{"modality", parts.modalities[static_cast<size_t>(m)]}, {"overlap", value}});
  }
  return out;
}

}  // namespace tessera

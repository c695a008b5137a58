#pragma once

// Data with known structure for the contract, learning and experiment tests of all models. Every
// number is a keyed draw, so the same options give the same data everywhere.

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/random.h"
#include "tessera/data/dataset.h"

namespace tessera {

/// Pairs that features explain (r2mr section 11, "Data"). Small versions: set n_users and n_items.
struct PlantedOptions {
  int64_t n_users = 800, n_items = 500;
  int64_t n_modalities = 2;  ///< 1 to 3: image of width 48, text 32, audio 24
  double mean_rows = 20;     ///< of a user, Poisson, at least 3
  double missing = 0;        ///< share of the items that lack a modality, drawn for each modality
  int64_t n_cold = 0;        ///< items whose rows are all in test
  uint64_t seed = 1;
};

/// Sequences that features do not explain (kdsr section 7, "Test").
struct PlantedSequenceOptions {
  int64_t n_users = 800, n_items = 300, length = 14;
  int64_t n_modalities = 2, width = 32;
  int64_t n_clusters = 10;  ///< of the features, per modality
  int64_t n_groups = 20;    ///< of the behaviour; item i is in group i mod n_groups
  double follow = 0.8;      ///< probability that the next item is of the next group
  double missing = 0.05;    ///< share of the items that lack a modality
  uint64_t seed = 1;
};

namespace planted {

inline std::string modality(int64_t index) {
  return std::vector<std::string>{"image", "text", "audio"}.at(static_cast<size_t>(index));
}

/// Normals of one stream and step, row r and column c from draw c of row r: double [rows, columns].
inline torch::Tensor normals(const Random& random, uint64_t step, int64_t rows, int64_t columns) {
  torch::Tensor out = torch::empty({rows, columns}, torch::kDouble);
  auto* to = out.mutable_data_ptr<double>();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      *to++ = random.normal(step, static_cast<uint64_t>(r), static_cast<uint32_t>(c));
    }
  }
  return out;
}

/// Poisson by Knuth: the number of uniforms of (0, row, 0), (0, row, 1), .. whose running product
/// stays above exp(-mean).
inline int64_t poisson(const Random& random, double mean, int64_t row) {
  const double limit = std::exp(-mean);
  double product = 1;
  for (uint32_t draw = 0;; ++draw) {
    product *= random.uniform(0, static_cast<uint64_t>(row), draw);
    if (product <= limit) return draw;
  }
}

/// The first `n` of `values` shuffled by the stream, in rising order.
inline std::vector<int64_t> chosen(const Random& random, std::vector<int64_t> values, int64_t n) {
  random.shuffle(values, 0);
  values.resize(static_cast<size_t>(n));
  std::sort(values.begin(), values.end());
  return values;
}

inline std::vector<int64_t> range(int64_t n) {
  std::vector<int64_t> out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), int64_t{0});
  return out;
}

/// A feature of the rows [n_items, width] without those of round(missing * n_items) items.
inline Feature feature(const Random& random, const std::string& name, const torch::Tensor& rows,
                       double missing) {
  const int64_t n = rows.size(0);
  const auto gone = chosen(random.stream("planted/missing/" + name), range(n),
                           std::llround(missing * static_cast<double>(n)));
  torch::Tensor row_of = torch::full({n}, -1, torch::kInt);
  auto* to = row_of.mutable_data_ptr<int32_t>();
  std::vector<int64_t> kept;
  for (int64_t item = 0; item < n; ++item) {
    if (std::binary_search(gone.begin(), gone.end(), item)) continue;
    to[item] = static_cast<int32_t>(kept.size());
    kept.push_back(item);
  }
  Feature out;
  out.name = name;
  out.rows = MappedArray(rows.index_select(0, torch::tensor(kept, torch::kLong)));
  out.row_of_item = row_of;
  out.manifest = {
      {"file", name + "_feat.npy"},      {"ids", nullptr},      {"rows", out.rows.n_rows()},
      {"width", out.rows.width()},       {"dtype", "float32"},  {"encoder", nullptr},
      {"source", {{"kind", "planted"}}}, {"valid_for", nullptr}};
  return out;
}

struct Pairs {
  std::vector<int32_t> users, items;
  void add(int64_t user, int64_t item) {
    users.push_back(static_cast<int32_t>(user));
    items.push_back(static_cast<int32_t>(item));
  }
};

inline Dataset dataset(int64_t n_users, int64_t n_items, const Pairs& train, const Pairs& valid,
                       const Pairs& test, std::vector<Feature> features) {
  return make_dataset(n_users, n_items, make_interactions(n_users, train.users, train.items),
                      make_interactions(n_users, valid.users, valid.items),
                      make_interactions(n_users, test.users, test.items), std::move(features));
}

}  // namespace planted

/// Users a_u and items z_i in R^8, own parts f in R^4 per modality, all N(0, 1); a modality is
/// z G / sqrt 8 + .6 f G' / 2 + .15 noise. User u takes n = max(3, Poisson) distinct items, one
/// after another with probability ~ exp(1.6 a.z / sqrt 8 + .5 b_i), by the n largest of
/// logit + Gumbel noise, which is the same law. k = max(1, round(.1 n)); the first n - 2k are
/// train, then k valid, k test. Draws: streams planted/users (row u, a), planted/items (row i: z
/// 0..7, b 8), planted/<modality> (step 0 G, 1 G', 2 f, 3 noise), planted/counts, planted/choices
/// (row u, draw i), planted/cold.
inline Dataset planted_pairs(const PlantedOptions& options = {}) {
  const int64_t n_users = options.n_users, n_items = options.n_items;
  const Random random(options.seed);
  const auto users = planted::normals(random.stream("planted/users"), 0, n_users, 8);
  const auto items = planted::normals(random.stream("planted/items"), 0, n_items, 9);
  const auto z = items.narrow(1, 0, 8);
  const auto logits =
      (1.6 / std::sqrt(8.0) * users.mm(z.t()) + 0.5 * items.select(1, 8)).contiguous();

  std::vector<Feature> features;
  for (int64_t m = 0; m < options.n_modalities; ++m) {
    const std::string name = planted::modality(m);
    const int64_t width = std::vector<int64_t>{48, 32, 24}[static_cast<size_t>(m)];
    const Random own = random.stream("planted/" + name);
    const auto g = planted::normals(own, 0, 8, width);
    const auto g_own = planted::normals(own, 1, 4, width);
    const auto f = planted::normals(own, 2, n_items, 4);
    const auto noise = planted::normals(own, 3, n_items, width);
    const auto rows = z.mm(g) / std::sqrt(8.0) + 0.6 * f.mm(g_own) / 2.0 + 0.15 * noise;
    features.push_back(planted::feature(random, name, rows, options.missing));
  }

  const auto cold =
      planted::chosen(random.stream("planted/cold"), planted::range(n_items), options.n_cold);
  const Random counts = random.stream("planted/counts");
  const Random choices = random.stream("planted/choices");
  planted::Pairs train, valid, test;
  std::vector<std::pair<double, int64_t>> keys(static_cast<size_t>(n_items));
  for (int64_t u = 0; u < n_users; ++u) {
    const int64_t n =
        std::min(n_items, std::max<int64_t>(3, planted::poisson(counts, options.mean_rows, u)));
    const auto* logit = logits.const_data_ptr<double>() + u * n_items;
    for (int64_t i = 0; i < n_items; ++i) {
      const double uniform =
          (choices.bits(0, static_cast<uint64_t>(u), static_cast<uint32_t>(i)) + 0.5) * 0x1p-32;
      keys[static_cast<size_t>(i)] = {-(logit[i] - std::log(-std::log(uniform))), i};
    }
    std::partial_sort(keys.begin(), keys.begin() + n, keys.end());
    std::vector<int64_t> warm;
    for (int64_t j = 0; j < n; ++j) {
      const int64_t item = keys[static_cast<size_t>(j)].second;
      if (std::binary_search(cold.begin(), cold.end(), item)) {
        test.add(u, item);
      } else {
        warm.push_back(item);
      }
    }
    const auto n_warm = static_cast<int64_t>(warm.size());
    // (n_warm - 1) / 2 binds only where cold items left fewer than three rows.
    const int64_t k = std::min(
        (n_warm - 1) / 2, std::max<int64_t>(1, std::llround(0.1 * static_cast<double>(n_warm))));
    for (int64_t j = 0; j < n_warm; ++j) {
      planted::Pairs& part = j < n_warm - 2 * k ? train : j < n_warm - k ? valid : test;
      part.add(u, warm[static_cast<size_t>(j)]);
    }
  }
  return planted::dataset(n_users, n_items, train, valid, test, std::move(features));
}

/// Each modality has clusters of items (centroids N(0, 1), noise .5), drawn without regard to the
/// behaviour: an item of group g is followed by one of group g + 1 with probability `follow`, else
/// by any item. The last item of a user is test, the one before valid.
/// Draws: streams planted/<modality> (step 0 centroids, 1 noise, 2 cluster of row i), and
/// planted/sequences (step t of row u: draw 0 whether it follows, from draw 1 which item).
inline Dataset planted_sequences(const PlantedSequenceOptions& options = {}) {
  const int64_t n_items = options.n_items;
  const Random random(options.seed);
  std::vector<Feature> features;
  for (int64_t m = 0; m < options.n_modalities; ++m) {
    const std::string name = planted::modality(m);
    const Random own = random.stream("planted/" + name);
    const auto centroids = planted::normals(own, 0, options.n_clusters, options.width);
    std::vector<int64_t> cluster(static_cast<size_t>(n_items));
    for (int64_t i = 0; i < n_items; ++i) {
      uint32_t draw = 0;
      cluster[static_cast<size_t>(i)] =
          own.below(static_cast<uint32_t>(options.n_clusters), 2, static_cast<uint64_t>(i), draw);
    }
    const auto rows = centroids.index_select(0, torch::tensor(cluster, torch::kLong)) +
                      0.5 * planted::normals(own, 1, n_items, options.width);
    features.push_back(planted::feature(random, name, rows, options.missing));
  }

  const Random steps = random.stream("planted/sequences");
  planted::Pairs train, valid, test;
  for (int64_t u = 0; u < options.n_users; ++u) {
    int64_t item = 0;
    for (int64_t t = 0; t < options.length; ++t) {
      const auto step = static_cast<uint64_t>(t);
      const auto row = static_cast<uint64_t>(u);
      uint32_t draw = 1;
      if (t > 0 && steps.uniform(step, row, 0) < options.follow) {
        const int64_t group = (item + 1) % options.n_groups;
        const int64_t size = (n_items - group + options.n_groups - 1) / options.n_groups;
        item = group + options.n_groups * steps.below(static_cast<uint32_t>(size), step, row, draw);
      } else {
        item = steps.below(static_cast<uint32_t>(n_items), step, row, draw);
      }
      planted::Pairs& part = t < options.length - 2 ? train : t < options.length - 1 ? valid : test;
      part.add(u, item);
    }
  }
  Dataset out = planted::dataset(options.n_users, n_items, train, valid, test, std::move(features));
  out.has_order = true;
  return out;
}

/// Damages `modality` of round(share * items that have it) of them (r2mr section 11, "Corruption")
/// and returns these, rising. how = "swap": each takes the row of the next one, the last that of
/// the first; "noise": N(column mean, column std) over all rows. Draws: streams planted/damaged
/// (choice) and planted/damage (row = item).
inline std::vector<int64_t> corrupt(Dataset& data, const std::string& modality,
                                    const std::string& how, double share = 0.2, uint64_t seed = 1) {
  TORCH_CHECK(how == "swap" || how == "noise", "corrupt: swap or noise, not ", how);
  const auto place = std::find_if(data.features.begin(), data.features.end(),
                                  [&](const Feature& f) { return f.name == modality; });
  TORCH_CHECK(place != data.features.end(), "corrupt: no modality ", modality);
  Feature& feature = *place;
  const Random random(seed);
  std::vector<int64_t> present;
  for (int64_t item = 0; item < feature.n_items(); ++item) {
    if (feature.has(item)) present.push_back(item);
  }
  const auto damaged = planted::chosen(random.stream("planted/damaged"), present,
                                       std::llround(share * static_cast<double>(present.size())));
  const torch::Tensor clean = feature.gather(torch::tensor(present, torch::kLong));
  const torch::Tensor mean = clean.mean(0), spread = clean.std(0, /*unbiased=*/false);
  torch::Tensor rows = clean.clone();
  const auto row_of = [&](int64_t item) {
    return std::lower_bound(present.begin(), present.end(), item) - present.begin();
  };
  for (size_t j = 0; j < damaged.size(); ++j) {
    if (how == "swap") {
      rows[row_of(damaged[j])].copy_(clean[row_of(damaged[(j + 1) % damaged.size()])]);
    } else {
      const auto item = static_cast<uint64_t>(damaged[j]);
      for (int64_t c = 0; c < feature.width(); ++c) {
        rows[row_of(damaged[j])][c] =
            mean[c].item<double>() +
            spread[c].item<double>() *
                random.stream("planted/damage").normal(0, item, static_cast<uint32_t>(c));
      }
    }
  }
  auto* to = (feature.row_of_item = torch::full({feature.n_items()}, -1, torch::kInt))
                 .mutable_data_ptr<int32_t>();
  for (size_t r = 0; r < present.size(); ++r) to[present[r]] = static_cast<int32_t>(r);
  feature.rows = MappedArray(rows);
  return damaged;
}

}  // namespace tessera

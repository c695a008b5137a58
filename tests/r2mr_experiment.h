#pragma once

// The planted corruption of specs r2mr section 11, measured.

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tessera/model/offers.h"
#include "tessera/model/registry.h"
#include "tessera/nn/review.h"
#include "tessera/ops/pca.h"
#include "tessera/study/quality.h"
#include "tests/planted.h"

namespace tessera {

/// Planted data whose images are damaged for a fifth of the items.
struct Damage {
  Dataset data;
  torch::Tensor damaged;    ///< bool [n_items]
  torch::Tensor true_rows;  ///< the undamaged images, as the model prepares rows [n_items, 32]

  Damage(const std::string& how, uint64_t seed) {
    PlantedOptions options;
    options.seed = seed;
    data = planted_pairs(options);
    const torch::Tensor clean = data.features[0].all();
    damaged = torch::zeros({data.n_items}, torch::kBool);
    for (const int64_t item : corrupt(data, "image", how, 0.2, seed)) damaged[item] = true;
    Pca pca = fit_pca(data.features[0].all(), 32, Random(seed));
    pca.scale = 1;
    true_rows = pca.transform(clean).to(torch::kFloat).tanh();
  }
};

inline Settings with(Settings settings, const Settings& more) {
  settings.insert(settings.end(), more.begin(), more.end());
  return settings;
}

/// What an R2MR reports of the features it reviewed.
inline Json report_of(Model& model) {
  return quality_report("R2MR", *model.offers().report->quality(), model.data());
}

/// An R2MR that stands alone, with its faces.
struct MadeR2mr {
  RunSettings settings;
  std::unique_ptr<Model> model;
  FeatureSupplier& supplier() { return dynamic_cast<FeatureSupplier&>(*model); }
  Json report() { return report_of(*model); }
  TensorMap weights() { return saved().weights; }
  TensorMap state() { return saved().optimizer; }
  State::Saved saved() {
    State state;
    model->state(state);
    return state.save();
  }
};

inline std::unique_ptr<MadeR2mr> make_r2mr(const Dataset& data, const Settings& settings,
                                           uint64_t seed = 999) {
  const ModelInfo& info = find_model("R2MR");
  auto out = std::make_unique<MadeR2mr>();
  out->settings = resolve_settings(info, settings);
  out->model =
      info.make(settings, Context{data.view(), Random(seed), out->settings.train_settings, {}});
  return out;
}

/// What the table of section 11 holds, after review and one round.
struct Repair {
  double auc_before, auc_text;
  double damaged_low, clean_low;              ///< shares below eta, of the scored
  double damaged_rewritten, clean_rewritten;  ///< shares rewritten in round 1
  int64_t accepted, refused;                  ///< images proposed in round 1
  double cosine, cosine_mean, cosine_kept;    ///< of the damaged rows rewritten, to the true row
  double worst_damaged;                       ///< of the operator's 100 worst items before repair
};

inline double mean_cosine(const torch::Tensor& a, const torch::Tensor& b) {
  return torch::cosine_similarity(a, b, 1, 1e-12).mean().item<double>();
}

inline Repair repaired(const Damage& damage, const Settings& settings) {
  Settings before = settings;
  before.push_back({"rewrite_max", 0, "test"});
  auto reviewed = make_r2mr(damage.data, before);
  reviewed->supplier().fit(Watch{});
  const auto weights = reviewed->weights();
  const auto scores = weights.at("scores");
  const auto scored = scores.select(1, 0) > 0;
  const auto bad = damage.damaged.logical_and(scored);
  const auto good = damage.damaged.logical_not().logical_and(scored);
  const auto pick = [](const torch::Tensor& x, const torch::Tensor& mask) {
    return x.index_select(0, mask.nonzero().flatten());
  };
  Repair out{};
  const auto image = scores.select(1, 0), text = scores.select(1, 1);
  out.auc_before = auc(pick(image, good), pick(image, bad));
  out.auc_text = auc(pick(text, good), pick(text, bad));
  const double eta = weights.at("eta")[0].item<double>();
  const auto share = [](const torch::Tensor& flags) {
    return flags.to(torch::kDouble).mean().item<double>();
  };
  out.damaged_low = share(pick(image, bad) < eta);
  out.clean_low = share(pick(image, good) < eta);
  const Json worst = reviewed->report()["worst"]["image"];
  double hits = 0;
  for (const auto& entry : worst) {
    hits += damage.damaged[std::stoll(entry["item"].get<std::string>())].item<bool>() ? 1 : 0;
  }
  out.worst_damaged = worst.empty() ? 0 : hits / static_cast<double>(worst.size());

  auto made = make_r2mr(damage.data, settings);
  made->supplier().fit(Watch{});
  const Json round = made->report()["rounds"].back();
  const Json none = Json::object();  // of a round that was skipped
  out.accepted = round.value("accepted", none).value("image", int64_t{0});
  out.refused = round.value("refused", none).value("image", int64_t{0});
  const auto after = made->weights();
  const auto changed = after.at("round_of").select(1, 0) > 0;
  out.damaged_rewritten = share(pick(changed, damage.damaged));
  out.clean_rewritten = share(pick(changed, damage.damaged.logical_not()));
  const auto both = damage.damaged.logical_and(changed);
  const auto truth = pick(damage.true_rows, both);
  const auto original = made->state().at("image.original");
  const auto high = pick(original, image >= eta).mean(0, true).expand_as(truth);
  out.cosine = mean_cosine(pick(after.at("image.rows"), both), truth);
  out.cosine_mean = mean_cosine(high, truth);
  out.cosine_kept = mean_cosine(pick(original, both), truth);
  return out;
}

}  // namespace tessera

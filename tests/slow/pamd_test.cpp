// Acceptance tests 4 and 6 of specs pamd section 12: trainings to their end.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cstdio>
#include <fstream>
#include <map>

#include "tessera/model/offers.h"
#include "tessera/model/registry.h"
#include "tests/contract/training.h"
#include "tests/unit/real_data.h"

namespace tessera {
namespace {

/// Plots and posters of ML-1M, all films of either file.
Dataset ml1m_content() {
  std::vector<std::vector<std::string>> ids_of;
  std::map<std::string, int32_t> item_of;
  const fs::path folder = real_data("ml-1m") / "features";
  for (const std::string name : {"image", "text"}) {
    std::ifstream in(folder / (name + "_feat.ids"));
    auto& ids = ids_of.emplace_back();
    for (std::string id; std::getline(in, id);) {
      ids.push_back(id);
      item_of.emplace(id, static_cast<int32_t>(item_of.size()));
    }
  }
  const auto n = static_cast<int64_t>(item_of.size());
  std::vector<Feature> features;
  for (const std::string name : {"image", "text"}) {
    Feature feature;
    feature.name = name;
    feature.rows = map_npy(folder / (name + "_feat.npy"));
    feature.row_of_item = torch::full({n}, -1, torch::kInt);
    const auto& ids = ids_of[features.size()];
    for (size_t r = 0; r < ids.size(); ++r) {
      feature.row_of_item.mutable_data_ptr<int32_t>()[item_of.at(ids[r])] = static_cast<int32_t>(r);
    }
    features.push_back(std::move(feature));
  }
  const std::vector<int32_t> users = {0, 0}, items = {0, 1};
  return make_dataset(1, n, make_interactions(1, users, items), {}, {}, std::move(features));
}

// Acceptance 4: alignment on held-out films, and separation under the preset.
TEST(PamdMovieLens, HeldOutPartners) {
  if (!fs::exists(real_data("ml-1m"))) GTEST_SKIP() << why_without("ml-1m");
  const Dataset data = ml1m_content();
  for (const std::string preset : {"default", "separate"}) {
    const Settings settings = {{"preset", preset, "test"}};
    const ModelInfo& info = find_model("PAMD");
    const RunSettings resolved = resolve_settings(info, settings);
    auto model = info.make(settings, Context{data.view(), Random(1), resolved.train_settings, {}});
    Json last;
    Watch watch;
    watch.log = [&](const Json& line) { last = line; };
    FeatureSupplier& supplier = *model->offers().features;
    supplier.fit(watch);
    const torch::NoGradGuard no_grad;
    const Json overlap = supplier.export_features(Json::object())[0].card["overlap"];
    const double gap = last["matched"].get<double>() - last["unmatched"].get<double>();
    const double tenth = last["hit@10"].get<double>();
    EXPECT_GE(gap, .10) << preset;
    EXPECT_GE(tenth, .20) << preset;
    if (preset == "separate") {
      EXPECT_LE(overlap["image"].get<double>(), .4);
      EXPECT_LE(overlap["text"].get<double>(), .4);
    }
    std::printf("%s: %d epochs, gap %.2f, best 10 of %d: %.2f, overlap image %.2f, text %.2f\n",
                preset.c_str(), last["epoch"].get<int>(), gap, last["n_held_out"].get<int>(), tenth,
                overlap["image"].get<double>(), overlap["text"].get<double>());
  }
}

// Acceptance 6: content explains these data, so parts must beat IDs alone.
TEST(PamdLearning, PartsBeatIdsAlone) {
  const Dataset data = learning_data();
  const auto recall = [&](const Settings& settings) {
    const Trained trained(find_model("PAMD"), data, settings);
    return trained.result.test->value("recall@20");
  };
  const double full = recall({}), ids = recall({{"only_parts", "none", "test"}});
  std::printf("recall@20 full %.4f, IDs alone %.4f\n", full, ids);
  EXPECT_GE(full, 1.2 * ids);
}

}  // namespace
}  // namespace tessera

#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "tessera/base/files.h"
#include "tessera/model/registry.h"
#include "tessera/train/train.h"
#include "tests/planted.h"

namespace tessera {

inline fs::path scratch(const std::string& name) {
  const fs::path path = fs::path(testing::TempDir()) / ("tessera_" + name);
  fs::remove_all(path);
  return path;
}

/// Every registered model, for suites that walk the registry.
inline std::vector<std::string> model_names() {
  std::vector<std::string> out;
  for (const auto& info : models()) out.push_back(info.name);
  return out;
}

/// A few dozen users, with items that lack a modality and items without a train row.
inline Dataset small_data(int n_modalities) {
  PlantedOptions options;
  options.n_users = 60;
  options.n_items = 50;
  options.mean_rows = 12;
  options.n_modalities = n_modalities;
  options.missing = 0.1;
  options.n_cold = 5;
  return planted_pairs(options);
}

/// The data of r2mr section 11 without corruption.
inline Dataset learning_data() { return planted_pairs({}); }

inline TrainConfig training(const Settings& settings, const ModelInfo& info,
                            const fs::path& folder = {}) {
  TrainConfig config;
  config.settings = resolve_settings(info, settings).train_settings;
  config.protocol = find_protocol(config.settings.protocol);
  config.folder = folder;
  return config;
}

/// A model trained on planted data.
struct Trained {
  RunSettings settings;
  const Dataset& data;
  std::unique_ptr<Model> model;
  TrainResult result;

  Trained(
      const ModelInfo& info, const Dataset& data, const Settings& given,
      const fs::path& folder = {}, bool resume = false,
      std::function<void(int64_t)> on_epoch = [](int64_t) {})
      : settings(resolve_settings(info, given)), data(data) {
    if (!folder.empty()) fs::create_directories(folder);
    const auto seed = static_cast<uint64_t>(settings.train_settings.seed);
    model = info.make(given, Context{data.view(), Random(seed), settings.train_settings, {}});
    TrainConfig config = training(given, info, folder);
    config.resume = resume;
    config.on_epoch = std::move(on_epoch);
    result = train_model(*model, data, config);
  }

  torch::Tensor scores() {
    const torch::NoGradGuard no_grad;
    return model->score({torch::arange(data.n_users, torch::kInt64), {}}).clone();
  }
};

/// metrics.jsonl without times, rates and memory: what bit-equal runs share.
inline std::vector<std::string> without_times(const fs::path& path) {
  std::vector<std::string> out;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    Json json = Json::parse(line);
    for (const char* key : {"time_s", "samples_per_s", "rss_mb", "gpu_mb", "time", "run"}) {
      json.erase(key);
    }
    out.push_back(json.dump());
  }
  return out;
}

}  // namespace tessera

#pragma once

// A KDSR training with the lines that it logs, and the planted experiment of kdsr section 7.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/files.h"
#include "tessera/model/registry.h"
#include "tessera/train/train.h"
#include "tests/planted.h"

namespace tessera {

struct KdsrRun {
  const Dataset& data;
  std::unique_ptr<Model> model;
  std::vector<Json> lines;  ///< of metrics.jsonl
  TrainResult result;

  KdsrRun(const Dataset& data, Settings given) : data(data) {
    given.push_back({"protocol", "seq-none", "test"});
    const ModelInfo& info = find_model("KDSR");
    const RunSettings settings = resolve_settings(info, given);
    model = info.make(given, Context{data.view(), Random(1), settings.train_settings, {}});
    TrainConfig config;
    config.settings = settings.train_settings;
    config.protocol = find_protocol("seq-none");
    config.folder = fs::path(testing::TempDir()) / "tessera_kdsr";
    fs::remove_all(config.folder);
    fs::create_directories(config.folder);
    result = train_model(*model, data, config);
    std::ifstream in(config.folder / "metrics.jsonl");
    for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
    fs::remove_all(config.folder);
  }

  double series(const std::string& modality, int64_t epoch, const std::string& name = "e") const {
    for (const auto& line : lines) {
      if (line["event"] == "forgetting" && line["modality"] == modality && line["epoch"] == epoch) {
        return line[name];
      }
    }
    ADD_FAILURE() << "no line for " << modality << " in epoch " << epoch;
    return std::nan("");
  }
};

inline Settings planted_settings(const Settings& extra) {
  Settings out = {{"embedding_size", 32, "test"},  {"n_codes", 16, "test"},
                  {"learning_rate", 1e-2, "test"}, {"train_batch_size", 128, "test"},
                  {"dropout", 0.2, "test"},        {"pair_nodes", 16, "test"},
                  {"epochs", 25, "test"},          {"stopping_step", 100, "test"}};
  out.insert(out.end(), extra.begin(), extra.end());
  return out;
}

inline const Setting kNoSkd{"skd_weight", Json::array({0.0}), "test"};
inline const Setting kNoCkd{"ckd_weight", Json::array({0.0}), "test"};
inline const Setting kFullRate{"async_lr", "off", "test"};

}  // namespace tessera

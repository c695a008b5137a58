#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/base/log.h"
#include "tessera/model/model.h"

namespace tessera {

/// Writes the built-in shop's source files into `folder` (written beside and exchanged; what was
/// there is replaced): items.jsonl, images/<item>.png, events.tsv, image_feat.npy and text_feat.npy
/// with their .ids, README.txt. Everything is made up from `seed`: the same seed gives the same
/// bytes on every machine.
void make_shop(const std::filesystem::path& folder, uint64_t seed);

struct DemoRequest {
  std::filesystem::path folder;  ///< gets source/, dataset/ and runs/<model>/
  uint64_t seed = 999;
  int64_t threads = 0;  ///< 0: all cores
  std::string command;
  Log log;
  std::function<bool()> stop_requested = [] { return false; };
  std::function<Progress(std::string, int64_t)> progress = [](std::string, int64_t) {
    return Progress{};
  };
};

/// A model's numbers on the shop; none where it has no such number.
struct DemoRow {
  std::string model;
  std::optional<double> recall, ndcg, cold_recall;  ///< at 20, on test
  std::optional<double> epoch_s;                    ///< median; of a closed form its whole training
  std::optional<int64_t> peak_rss_mb;
  std::optional<double> valid_recall;
};
struct DemoItem {
  std::string id, title;
  double score = 0;
};
/// Somebody of the shop: titles last bought, and what is offered.
struct DemoUser {
  std::string id;
  std::vector<std::string> bought;
  std::vector<DemoItem> items;
};
struct DemoResult {
  std::filesystem::path folder;
  uint64_t seed = 0;
  std::vector<DemoRow> table;
  std::string best;  ///< the model that did best on valid; it makes the offers
  std::vector<DemoUser> users;

  /// {"folder","seed","table":[..],"recommendations":{"model","users":[..]}}.
  Json json() const;
};

/// The whole way on made-up data: shop, import, six models, comparison, recommendations. What the
/// folder already holds is not done again; a run that was interrupted goes on. Exit 2 for a folder
/// that holds something else.
DemoResult demo(const DemoRequest& request);

/// For people: the table and the recommendations.
std::string demo_text(const DemoResult& result);

}  // namespace tessera

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

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

/// The whole way on made-up data: shop, import, six models, comparison, recommendations. What the
/// folder already holds is not done again; a run that was interrupted goes on. Returns
/// {"folder","seed","counts","table":[..],"recommendations":{"model","users":[..]}}. Exit 2 for a
/// folder that holds something else.
Json demo(const DemoRequest& request);

/// What demo() returned, for people: the table, the recommendations and what to type next.
std::string demo_text(const Json& result, const std::string& program);

}  // namespace tessera

#include "tessera/train/test_curve.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>

namespace tessera {

Json released_summary(const std::vector<Json>& lines) {
  constexpr int64_t kPatience = 6;
  Json best = Json::object(), stop;
  bool improved_before = true;
  int64_t misses = 0;
  for (const Json& line : lines) {
    if (!line.is_object() || !line.contains("epoch")) continue;
    bool improved = false;
    for (const int64_t k : {5, 20}) {
      for (const char* metric : {"recall", "mrr", "ndcg"}) {
        const std::string name = fmt::format("{}@{}", metric, k);
        if (!line.contains(name) || !line[name].is_number()) continue;
        const auto value = line[name].get<double>();
        if (best.contains(name) && value <= best[name]["value"].get<double>()) continue;
        improved = true;
        best[name] = {{"epoch", line["epoch"]}, {"value", value}};
        if (std::string(metric) != "ndcg") continue;
        double ideal = 0;
        for (int64_t i = 1; i <= k; ++i) ideal += 1 / std::log2(static_cast<double>(i) + 1);
        best[name]["as_logged"] = value / ideal;
      }
    }
    misses = improved || improved_before ? 0 : misses + 1;
    improved_before = improved;
    if (misses == kPatience) {
      stop = line["epoch"];
      break;
    }
  }
  return {{"label", "diagnostic: best epochs on test, never selects"},
          {"stop_epoch", stop},
          {"best", best}};
}

}  // namespace tessera

#include "tessera/train/metrics_log.h"

#include <fstream>
#include <iterator>

#include "tessera/train/results.h"

namespace tessera {
namespace {

/// A line as json() of its kind made it, or a model's own; a line without numbers has none.
MetricsLine line_from(Json json) {
  MetricsLine out;
  const auto text = [&](const char* key) {
    const auto found = json.find(key);
    return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  out.event = text("event");
  out.phase = text("phase");
  for (const auto& [name, value] : json.items()) {
    if (name == "loss" && value.is_object()) {
      for (const auto& [part, each] : value.items()) {
        if (each.is_number()) out.losses.emplace_back(part, each.get<double>());
      }
    } else if (name == "epoch") {
      if (value.is_number_integer()) out.epoch = value.get<int64_t>();
    } else if (name == "best") {
      out.best = value == true;
    } else if (value.is_number()) {
      out.values.emplace_back(name, value.get<double>());
    }
  }
  out.json = std::move(json);
  return out;
}

}  // namespace

Json line_json(const RunLine& line) {
  return {{"event", "run"},      {"run", line.run},
          {"model", line.model}, {"dataset", line.dataset},
          {"seed", line.seed},   {"protocol", line.protocol},
          {"seen", line.seen},   {"n_parameters", line.n_parameters},
          {"time", line.time}};
}

Json line_json(const TrainLine& line) {
  return {{"event", "epoch"},
          {"phase", "train"},
          {"epoch", line.epoch},
          {"loss", metrics_json(line.losses)},
          {"lr", line.learning_rate},
          {"time_s", line.time_s},
          {"samples_per_s", line.samples_per_s},
          {"rss_mb", line.rss_mb},
          {"gpu_mb", nullptr}};
}

Json line_json(const ValidLine& line) {
  Json out = {{"event", "epoch"}, {"phase", "valid"}, {"epoch", line.epoch}};
  out.update(metrics_json(line.metrics));
  out["score"] = line.score;
  out["best"] = line.best;
  out["bad_rounds"] = line.bad_rounds;
  out["time_s"] = line.time_s;
  return out;
}

Json line_json(const EndLine& line) {
  return {{"event", "end"},
          {"state", line.state},
          {"best_epoch", line.best_epoch},
          {"test", line.test ? metrics_json(*line.test) : Json()},
          {"time_s", line.time_s}};
}

std::vector<MetricsLine> read_metrics_log(const std::filesystem::path& path, int64_t& from) {
  std::ifstream in(path, std::ios::binary);
  in.seekg(from);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  std::vector<MetricsLine> out;
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    Json json = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                            text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (json.is_object()) out.push_back(line_from(std::move(json)));
  }
  from += static_cast<int64_t>(begin);
  return out;
}

std::vector<MetricsLine> read_metrics_log(const std::filesystem::path& path) {
  int64_t from = 0;
  return read_metrics_log(path, from);
}

}  // namespace tessera

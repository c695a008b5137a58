#include "cli/study_flags.h"

#include <charconv>
#include <set>

namespace tessera::cli {
namespace {

int64_t whole(const std::string& flag, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    throw usage_error("{} '{}': wanted a whole number, or several between commas", flag,
                      printable(text));
  }
  return value;
}

}  // namespace

void add_study_flags(CLI::App& verb, StudyFlags& flags, const std::string& default_seeds) {
  verb.add_option(
      "--seeds", flags.seeds,
      "how many seeds, from --seed (999) on, or a list 7,8,9 (default " + default_seeds + ")");
  verb.add_option("--resume", flags.resume, "study folder to go on with");
  verb.get_option("--output")->description("study folder; the same command on it continues");
}

std::vector<int64_t> choose_seeds(const std::string& typed, int64_t otherwise, int64_t least,
                                  Settings& settings, int64_t* first_seed) {
  int64_t first = 999;
  for (const auto& setting : settings) {
    if (setting_name(setting.name) != "seed") continue;
    const bool list = setting.value.is_array() && !setting.value.empty();
    const Json& value = list ? setting.value.front() : setting.value;
    first = whole("--seed", value.is_string() ? value.get<std::string>() : value.dump());
  }
  if (first_seed != nullptr) *first_seed = first;
  std::erase_if(settings, [](const Setting& s) { return setting_name(s.name) == "seed"; });
  std::vector<int64_t> out;
  const auto parts = split_list(typed);
  if (parts.size() > 1) {
    for (const auto& part : parts) out.push_back(whole("--seeds", part));
    if (std::set<int64_t>(out.begin(), out.end()).size() < out.size()) {
      throw usage_error("--seeds '{}': a seed is named twice", printable(typed));
    }
    return out;
  }
  const int64_t n = parts.empty() ? otherwise : whole("--seeds", parts[0]);
  if (n < least || n > 1000) {
    throw usage_error(
        "--seeds is how many, from {} to 1000, got {}; for the one seed {} write "
        "--seed {} --seeds 1",
        least, n, n, n);
  }
  for (int64_t i = 0; i < n; ++i) out.push_back(first + i);
  return out;
}

void take_study_settings(const Common& common, Settings& settings, std::string& model,
                         std::vector<std::string>& datasets) {
  for (auto& setting : gather_settings(common)) {
    // RecBole's and MMRec's files name model and dataset beside the settings.
    const auto value = setting.value.is_string() ? setting.value.get<std::string>() : "";
    if (setting.name == "model") {
      if (model.empty()) model = value;
    } else if (setting.name == "dataset") {
      if (datasets.empty()) datasets = {value};
    } else {
      settings.push_back(std::move(setting));
    }
  }
}

Surroundings surroundings(const Common& common) {
  Surroundings out;
  out.command = common.command;
  out.log = make_log(common);
  out.stop_requested = interrupted;
  out.progress = progress_bar(common);
  return out;
}

}  // namespace tessera::cli

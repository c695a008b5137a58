#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/cli.h"
#include "tessera/study/study.h"

namespace tessera::cli {

/// The flags that compare and tune share.
struct StudyFlags {
  std::string resume, seeds;
};
void add_study_flags(CLI::App& verb, StudyFlags& flags, const std::string& default_seeds);

/// "5": that many from the `seed` setting on (999); "7,8,9": these. The `seed` setting is taken
/// out, into `first` where wanted; a list of MMRec's counts by its first. Exit 2 for fewer than
/// `least`.
std::vector<int64_t> choose_seeds(const std::string& typed, int64_t otherwise, int64_t least,
                                  Settings& settings, int64_t* first = nullptr);

/// The command line's settings; `model` and `dataset` of a config file stand in where no flag does.
void take_study_settings(const Common& common, Settings& settings, std::string& model,
                         std::vector<std::string>& datasets);

/// Log, progress and interruption for the runs of a study.
Surroundings surroundings(const Common& common);

}  // namespace tessera::cli

#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/base/log.h"

namespace tessera {

/// What a report page shows: {"title", "sections": [{"title", "note", "blocks"}]}. `paths` are run
/// folders, one folder of several runs (compare, tune), or a dataset folder whose features a model
/// has reviewed. A block is a table, lines, bars,
/// intervals, a scatter plot or cards; web/report/report.html draws them. A run's model is opened
/// where it tells of itself; exit 3 for a folder that is neither.
Json report_data(const std::vector<std::filesystem::path>& paths, const Log& log = {});

/// One self-contained HTML page that holds the data as JSON, never as markup.
std::string report_page(const Json& data);

}  // namespace tessera

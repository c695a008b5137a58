#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tessera/base/json.h"

namespace tessera {

/// One vector a request, empty where the command gave none, and why not by reason.
struct ExecAnswers {
  std::vector<std::vector<float>> rows;
  Json failures = Json::object();  ///< reason: count
};

/// Runs `command` by the shell with one JSON object a line on its stdin ("id" and more, as given)
/// and reads from its stdout either JSON lines {"id", "vector": [..]} in any order, or one .npy
/// with a row for each request in order. A request that is not answered, or by {"id", "error"}, or
/// with a number that is not finite, counts as failed. Exit 3 where the command fails as a whole
/// (not 0, no such output, widths that differ); its stderr goes where ours goes.
ExecAnswers run_exec(const std::string& command, const std::vector<Json>& requests,
                     const std::function<bool()>& stop_requested);

}  // namespace tessera

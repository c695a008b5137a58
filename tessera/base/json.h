#pragma once

#include <nlohmann/json.hpp>

namespace tessera {

/// JSON with keys in the order of insertion, as users meet it in files and on stdout.
using Json = nlohmann::ordered_json;

}  // namespace tessera

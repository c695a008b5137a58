#pragma once

#include <string>

#include "tessera/base/fields.h"

namespace tessera::cli {

/// Settings of a YAML or JSON file, nested maps as dotted names, origins "file:line". A
/// config.resolved.json of a run gives back the values that it was made with. Anchors, tags and
/// multi-line text are refused. Exit 3 for a file that does not parse.
Settings read_config(const std::string& path);
Settings parse_config(const std::string& text, const std::string& name);

}  // namespace tessera::cli

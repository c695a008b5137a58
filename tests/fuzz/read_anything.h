#pragma once

#include <string>
#include <utility>

#include "tessera/base/error.h"
#include "tessera/read/readers.h"

namespace tessera {

/// Detects and reads content under a name, as its kind asks; bad lines are tolerated, so that what
/// follows them is reached.
inline void read_anything(const std::string& name, std::string bytes) {
  ReadOptions options;
  options.max_bad_lines = 8;
  try {
    const Detected found = detect_bytes(name, std::move(bytes), options);
    inspect_text(found.json());
    Json report;
    if (found.use == Use::interactions) {
      EventTable table;
      read_interactions({found}, options, table, report);
    } else if (found.use == Use::items) {
      ItemTable items;
      read_items(found, options, items, report);
    } else if (found.use == Use::users) {
      count_users(found, options, report);
    } else if (found.use == Use::settings) {
      parse_gorse_config(*found.bytes, name);
    }
    report.dump();
  } catch (const InputError&) {
  }
}

}  // namespace tessera

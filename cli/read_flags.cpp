#include "cli/read_flags.h"

namespace tessera::cli {

void add_read_flags(CLI::App& verb, ReadOptions& options) {
  const std::string how = "column, by name or 1-based number";
  verb.add_option("--user-col", options.user_col, "user " + how);
  verb.add_option("--item-col", options.item_col, "item " + how);
  verb.add_option("--rating-col", options.rating_col, "rating " + how);
  verb.add_option("--time-col", options.time_col, "time " + how);
  verb.add_option("--split-col", options.split_col, "split label " + how);
  verb.add_option("--event-col", options.event_col, "event type " + how);
  verb.add_option("--delimiter", options.delimiter,
                  "tab, comma, semicolon, pipe, space, '::' or one character");
  verb.add_option("--item-id", options.item_id_col, "id column of the catalogue");
}

}  // namespace tessera::cli

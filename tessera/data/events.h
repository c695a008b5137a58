#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/data/vocabulary.h"

namespace tessera {

/// Labels of rows, as in interactions.tsv; `none` where a file has no split.
enum class Split : uint8_t { train, valid, test, history, seen, none };
const char* split_name(Split split);

/// What the files of a source say about users and items, before filters and splits. Columns are
/// parallel; a column that no file has is empty. Users and items are indexed by first appearance.
struct EventTable {
  Vocabulary users, items;
  std::vector<int32_t> user, item;
  std::vector<float> rating;
  std::vector<int64_t> time;   ///< in `time_unit`; a position counts from 0 within the user
  std::vector<uint8_t> event;  ///< index into event_types
  std::vector<Split> split;
  std::vector<std::string> event_types;
  std::string time_unit;      ///< "s", "ms", "position" or "" without times
  bool keep_repeats = false;  ///< given labels and sequence text keep every row
  int64_t n_rows() const { return static_cast<int64_t>(user.size()); }
};

/// The catalogue: one row an item, columns by name. Kept as text, written to items.tsv.
struct ItemTable {
  Vocabulary ids;
  std::vector<std::string> columns;              ///< title, categories, is_hidden, timestamp, ..
  std::vector<std::vector<std::string>> values;  ///< values[column][row]
  /// Media files by item: (item row, modality, path).
  struct Media {
    int64_t row;
    std::string modality, path;
  };
  std::vector<Media> media;
  /// Numeric arrays found in the items (RecBole float_seq of one width, Gorse Labels): modality,
  /// width, float32 rows, and the item row of each.
  struct Vectors {
    std::string modality;
    int64_t width = 0;
    std::vector<float> rows;
    std::vector<int64_t> item_rows;
  };
  std::vector<Vectors> vectors;
};

}  // namespace tessera

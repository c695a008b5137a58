#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/data/events.h"

namespace tessera {

/// What flags say about raw files; everything left empty is detected.
struct ReadOptions {
  /// Columns by name (case and punctuation aside) or 1-based number.
  std::string user_col, item_col, rating_col, time_col, split_col, event_col;
  /// One character, "::", or a word: tab, comma, semicolon, pipe, space.
  std::string delimiter;
  int64_t max_bad_lines = 0;      ///< bad lines tolerated and counted, over all files of a call
  int64_t rows = 3;               ///< parsed rows that detection shows
  std::string item_id_col;        ///< of the catalogue
  std::vector<std::string> text;  ///< text columns of the catalogue that must be there
  std::filesystem::path images;   ///< folder of <item id>.jpg, .jpeg or .png
  /// Asked while rows are read; then exit 130. Empty: never.
  std::function<bool()> stop_requested;
};

/// What a file or folder is good for.
enum class Use {
  interactions,
  items,
  users,
  feature,   ///< .npy, .safetensors and the like: an input of data/feature
  settings,  ///< Gorse's configuration file
  folder,    ///< raw files: see `parts`
  dataset,
  run,
  bundle,
  study,
  refused,  ///< recognised and not read: `notes` holds why and how to convert it
};

/// What the detector found.
struct Detected {
  std::filesystem::path path;
  std::string kind;  ///< "MovieLens u.data", "RecBole .inter", "pickle", ..
  Use use = Use::refused;
  std::string delimiter;  ///< of delimited text, as in the file
  std::vector<std::string>
      names;  ///< column names; "1", "2", .. without header; empty where no table
  std::vector<std::string> types;  ///< RecBole's: token, token_seq, float, float_seq; else empty
  bool has_header = false;
  /// Meaning -> column index, in order: user, item, rating, time, position, split, event, list.
  std::vector<std::pair<std::string, int>> columns;
  std::string time_unit;      ///< "s", "ms", "ISO 8601", "position" or ""
  Split split = Split::none;  ///< from the file name (train.json, X.valid.inter)
  std::vector<std::vector<std::string>>
      rows;  ///< first parsed rows, cells in the order of `columns`
  std::vector<std::string> notes;
  std::filesystem::path images;              ///< picture folder beside a catalogue; empty without
  std::vector<Detected> parts;               ///< of a folder: its files, interactions first
  std::shared_ptr<const std::string> bytes;  ///< the content when it is not a file
  int64_t n_rows = 0;                        ///< of Parquet, as it says itself
  int64_t first_line = 0;                    ///< lines before the header or the first row

  int column(const std::string& meaning) const;  ///< index, or -1
  Json json() const;
};

/// Says what a file or folder is. Exit 3 for a missing or empty one, for binary content and a
/// delimiter that leaves one column; exit 2 for a column that is not there. Pickles and the like
/// are not errors here, see Use::refused.
Detected detect(const std::filesystem::path& path, const ReadOptions& options = {});
/// The same for content in memory; `name` stands for the path.
Detected detect_bytes(const std::string& name, std::string bytes, const ReadOptions& options = {});

/// What an import of `paths` reads: folders of raw files replaced by their files, interactions
/// first, in the order given. Exit 3 for a refused file, with the conversion command.
std::vector<Detected> detect_sources(const std::vector<std::filesystem::path>& paths,
                                     const ReadOptions& options = {});

/// Appends the rows of all files whose use is `interactions`, in order. Peak memory is the columns
/// of the table and one block of the file. Bad lines are exit 3, `file:line:col: reason; what to
/// write instead`. `report` gets "files" (Detected::json), "rows", "bad_lines",
/// "blank_lines", "bad_line_examples", "time_unit", "notes".
void read_interactions(const std::vector<Detected>& files, const ReadOptions& options,
                       EventTable& into, Json& report);

/// Appends the items of a catalogue, Gorse items or a RecBole .item. All columns are kept under
/// their names ("title", "categories", "is_hidden" ("1" or "0"), "timestamp" for Gorse's); lists
/// are joined by '|'; tabs and line ends within text become blanks. A repeated id keeps its first
/// row. `report` gets "file", "rows", "repeated", "bad_lines", "media", "vectors", "notes".
void read_items(const Detected& file, const ReadOptions& options, ItemTable& into, Json& report);

/// Checks a file of users (Gorse users, RecBole .user) and counts its rows: no model reads user
/// columns.
int64_t count_users(const Detected& file, const ReadOptions& options, Json& report);

/// The two lists of Gorse's configuration file: which feedback trains and which only counts as
/// seen.
struct EventRoles {
  std::vector<std::string> positive, read;
};
EventRoles read_gorse_config(const std::filesystem::path& path);
EventRoles parse_gorse_config(std::string_view text, const std::string& name);

/// The report of `tessera inspect`: what a file, folder, run or bundle is.
Json inspect(const std::filesystem::path& path, const ReadOptions& options = {});
std::string inspect_text(const Json& report);

}  // namespace tessera

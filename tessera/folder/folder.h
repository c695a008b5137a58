#pragma once

#include <filesystem>
#include <functional>
#include <istream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/error.h"
#include "tessera/base/json.h"
#include "tessera/data/dataset.h"
#include "tessera/data/events.h"
#include "tessera/data/vocabulary.h"

namespace tessera {

/// The tables of a dataset folder: tab-separated lines under a header, every cell as it stands.
class TableReader {
 public:
  TableReader(std::istream& in, std::string name);
  const std::vector<std::string>& header() const { return header_; }
  /// The next line's cells, as many as the header has, else exit 3; false at the end.
  bool next(std::vector<std::string_view>& cells);
  /// Exit 3 for cell `column` (from 0) of the line just read: "name:line:col: reason".
  InputError error(size_t column, const std::string& reason) const;

 private:
  bool line(std::string_view& text);

  std::istream& in_;
  std::string name_, buffer_;
  size_t at_ = 0, line_ = 0;
  std::vector<std::string> header_;
  std::vector<std::string_view> cells_;
};

/// interactions.tsv: the columns of an EventTable, users and items by the maps, and the fold.
struct FolderRows {
  EventTable table;
  std::vector<uint8_t> fold;
};

/// "raw_id<TAB>index" in index order.
void write_id_map(const std::filesystem::path& path, const Vocabulary& ids);
Vocabulary read_id_map(std::istream& in, const std::string& name);

/// `columns` are read only when wanted: ratings and event names (the loader needs neither).
FolderRows read_folder_interactions(std::istream& in, const std::string& name, Vocabulary users,
                                    Vocabulary items, bool ratings_and_events);
void write_interactions(const std::filesystem::path& path, const EventTable& table,
                        const std::vector<uint8_t>& fold,
                        const std::function<bool()>& stop_requested = {});

/// items.tsv, its rows put in the order of `items`.
ItemColumns read_item_columns(std::istream& in, const std::string& name, const Vocabulary& items);

/// A line of media.tsv: a file that shows one modality of an item; `path` from the folder on.
struct MediaRow {
  std::string_view item, modality, path, sha256;
};
/// Calls `visit` for every line of the folder's media.tsv, for none where there is no such file;
/// exit 3 for a line that is damaged or for which `visit` says false: no item of the folder.
void read_media(const std::filesystem::path& folder,
                const std::function<bool(const MediaRow&)>& visit);
/// The first file of that modality of each raw item id in the folder's media.tsv, as it stands.
std::map<std::string, std::string> media_files(const std::filesystem::path& folder,
                                               std::string_view modality);

/// dataset.json of a folder, checked for what every reader of it needs; exit 3 when the folder is
/// none. `check_hashes` compares the tables with the hashes it names.
Json read_dataset_json(const std::filesystem::path& folder, bool check_hashes);
Json parse_dataset_json(std::string_view text, const std::string& what);

/// True when the path is a folder with a dataset.json.
bool is_dataset_folder(const std::filesystem::path& path);

/// Everything of a folder but its features and item columns.
FolderRows read_folder(const std::filesystem::path& folder, const Json& about,
                       bool ratings_and_events);

}  // namespace tessera

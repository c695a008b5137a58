#include "tessera/folder/folder.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/base/files.h"

namespace tessera {
namespace {

constexpr size_t kBlock = 1 << 20;

template <typename T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

std::ifstream open_table(const fs::path& path) {
  std::error_code error;
  std::ifstream in;
  if (!fs::is_directory(path, error)) in.open(path, std::ios::binary);
  if (!in.is_open()) {
    throw data_error("no file {}: the dataset folder is not complete; import it again",
                     path.string());
  }
  return in;
}

/// The label of a name as interactions.tsv spells it; none when it is no label.
Split label_of(std::string_view name) {
  for (const Split split : {Split::train, Split::valid, Split::test, Split::history, Split::seen}) {
    if (name == split_name(split)) return split;
  }
  return Split::none;
}

int find_column(const std::vector<std::string>& header, const std::string& name) {
  const auto place = std::find(header.begin(), header.end(), name);
  return place == header.end() ? -1 : static_cast<int>(place - header.begin());
}

void check_count(const Json& about, const char* key, const std::string& what) {
  const auto place = about.find(key);
  if (place == about.end() || !place->is_number_integer() || *place < 0 ||
      *place > std::numeric_limits<int32_t>::max()) {
    throw data_error("{}: '{}' is not a count; the folder is damaged, import it again", what, key);
  }
}

}  // namespace

TableReader::TableReader(std::istream& in, std::string name) : in_(in), name_(std::move(name)) {
  std::string_view text;
  if (!line(text)) throw data_error("{} is empty: wanted a header line", name_);
  for (size_t from = 0;;) {
    const size_t tab = text.find('\t', from);
    header_.emplace_back(text.substr(from, tab - from));
    if (tab == std::string_view::npos) break;
    from = tab + 1;
  }
}

bool TableReader::line(std::string_view& text) {
  size_t end = buffer_.find('\n', at_);
  while (end == std::string::npos && in_) {
    buffer_.erase(0, at_);
    at_ = 0;
    const size_t kept = buffer_.size();
    buffer_.resize(kept + kBlock);
    in_.read(buffer_.data() + kept, kBlock);
    buffer_.resize(kept + static_cast<size_t>(in_.gcount()));
    end = buffer_.find('\n', kept);
  }
  if (end == std::string::npos) {
    if (at_ == buffer_.size()) return false;
    throw data_error("{}:{}: the last line has no end: the file is cut off", name_, line_ + 1);
  }
  text = std::string_view(buffer_).substr(at_, end - at_);
  at_ = end + 1;
  ++line_;
  return true;
}

bool TableReader::next(std::vector<std::string_view>& cells) {
  std::string_view text;
  if (!line(text)) return false;
  cells.clear();
  for (size_t from = 0;;) {
    const size_t tab = text.find('\t', from);
    cells.push_back(text.substr(from, tab == std::string_view::npos ? tab : tab - from));
    if (tab == std::string_view::npos) break;
    from = tab + 1;
  }
  if (cells.size() != header_.size()) {
    throw data_error("{}:{}: {} cells, wanted {} as in the header", name_, line_, cells.size(),
                     header_.size());
  }
  return true;
}

InputError TableReader::error(size_t column, const std::string& reason) const {
  return data_error("{}:{}:{}: {}", name_, line_, column + 1, reason);
}

void write_id_map(const fs::path& path, const Vocabulary& ids) {
  write_file_with(path, [&](std::ostream& out) {
    out << "raw_id\tindex\n";
    for (int64_t i = 0; i < ids.size(); ++i) out << ids[i] << '\t' << i << '\n';
  });
}

Vocabulary read_id_map(std::istream& in, const std::string& name) {
  TableReader reader(in, name);
  if (reader.header() != std::vector<std::string>{"raw_id", "index"}) {
    throw data_error("{}:1: wanted the header 'raw_id<tab>index'", name);
  }
  Vocabulary ids;
  std::vector<std::string_view> cells;
  while (reader.next(cells)) {
    int64_t index = 0;
    if (!parse_number(cells[1], index) || index != ids.size()) {
      throw reader.error(
          1, fmt::format("wanted index {}, found '{}'", ids.size(), printable(cells[1])));
    }
    if (cells[0].empty()) throw reader.error(0, "empty id");
    if (ids.add(cells[0]) != index) {
      throw reader.error(0, fmt::format("id '{}' stands twice", printable(cells[0])));
    }
  }
  return ids;
}

FolderRows read_folder_interactions(std::istream& in, const std::string& name, Vocabulary users,
                                    Vocabulary items, bool ratings_and_events) {
  TableReader reader(in, name);
  const auto& header = reader.header();
  const int at_user = find_column(header, "user_id"), at_item = find_column(header, "item_id");
  const int at_split = find_column(header, "split"), at_fold = find_column(header, "fold");
  int at_time = find_column(header, "timestamp");
  const int at_position = find_column(header, "position");
  if (at_user < 0 || at_item < 0 || at_split < 0) {
    throw data_error("{}:1: wanted the columns user_id, item_id and split, found '{}'", name,
                     printable(fmt::format("{}", fmt::join(header, " ")), 120));
  }
  FolderRows out;
  EventTable& table = out.table;
  table.users = std::move(users);
  table.items = std::move(items);
  if (at_time >= 0) table.time_unit = "s";
  if (at_time < 0 && at_position >= 0) {
    at_time = at_position;
    table.time_unit = "position";
  }
  const int at_rating = ratings_and_events ? find_column(header, "rating") : -1;
  const int at_event = ratings_and_events ? find_column(header, "event") : -1;
  Vocabulary event_types;
  std::vector<std::string_view> cells;
  while (reader.next(cells)) {
    if (table.n_rows() >= std::numeric_limits<int32_t>::max()) {
      throw data_error("{}: more than 2,147,483,647 rows", name);
    }
    const int32_t user = table.users.find(cells[at_user]);
    if (user < 0) {
      throw reader.error(
          at_user, fmt::format("user '{}' is not in user_map.tsv", printable(cells[at_user])));
    }
    const int32_t item = table.items.find(cells[at_item]);
    if (item < 0) {
      throw reader.error(
          at_item, fmt::format("item '{}' is not in item_map.tsv", printable(cells[at_item])));
    }
    const Split split = label_of(cells[at_split]);
    if (split == Split::none) {
      throw reader.error(at_split,
                         fmt::format("split '{}': wanted train, valid, test, history or seen",
                                     printable(cells[at_split])));
    }
    table.user.push_back(user);
    table.item.push_back(item);
    table.split.push_back(split);
    if (at_time >= 0) {
      int64_t time = 0;
      if (!parse_number(cells[at_time], time)) {
        throw reader.error(at_time, fmt::format("{} '{}': wanted a whole number", header[at_time],
                                                printable(cells[at_time])));
      }
      table.time.push_back(time);
    }
    if (at_rating >= 0) {
      float rating = 0;
      if (!parse_number(cells[at_rating], rating)) {
        throw reader.error(
            at_rating, fmt::format("rating '{}': wanted a number", printable(cells[at_rating])));
      }
      table.rating.push_back(rating);
    }
    if (at_event >= 0) {
      if (event_types.find(cells[at_event]) < 0 && event_types.size() > 255) {
        throw reader.error(at_event, "more than 256 event types");
      }
      table.event.push_back(static_cast<uint8_t>(event_types.add(cells[at_event])));
    }
    if (at_fold >= 0) {
      uint8_t fold = 0;
      if (!parse_number(cells[at_fold], fold)) {
        throw reader.error(
            at_fold, fmt::format("fold '{}': wanted a number from 0", printable(cells[at_fold])));
      }
      out.fold.push_back(fold);
    }
  }
  table.event_types = event_types.ids();
  return out;
}

void write_interactions(const fs::path& path, const EventTable& table,
                        const std::vector<uint8_t>& fold,
                        const std::function<bool()>& stop_requested) {
  write_file_with(
      path,
      [&](std::ostream& out) {
        std::string block = "user_id\titem_id";
        if (!table.rating.empty()) block += "\trating";
        if (!table.time.empty())
          block += table.time_unit == "position" ? "\tposition" : "\ttimestamp";
        if (!table.event.empty()) block += "\tevent";
        block += "\tsplit";
        if (!fold.empty()) block += "\tfold";
        block += '\n';
        std::array<char, 32> digits;
        const auto put = [&](auto value) {
          const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
          block += '\t';
          block.append(digits.data(), end);
        };
        for (int64_t row = 0; row < table.n_rows(); ++row) {
          block += table.users[table.user[row]];
          block += '\t';
          block += table.items[table.item[row]];
          if (!table.rating.empty()) put(table.rating[row]);
          if (!table.time.empty()) put(table.time[row]);
          if (!table.event.empty()) {
            block += '\t';
            block += table.event_types[table.event[row]];
          }
          block += '\t';
          block += split_name(table.split[row]);
          if (!fold.empty()) put(static_cast<int>(fold[row]));
          block += '\n';
          if (block.size() > kBlock) {
            out.write(block.data(), static_cast<std::streamsize>(block.size()));
            block.clear();
          }
        }
        out.write(block.data(), static_cast<std::streamsize>(block.size()));
      },
      stop_requested);
}

ItemColumns read_item_columns(std::istream& in, const std::string& name, const Vocabulary& items) {
  TableReader reader(in, name);
  const int at_item = find_column(reader.header(), "item_id");
  if (at_item < 0) throw data_error("{}:1: wanted a column item_id", name);
  ItemColumns out;
  std::vector<size_t> columns;
  for (size_t c = 0; c < reader.header().size(); ++c) {
    if (static_cast<int>(c) == at_item) continue;
    columns.push_back(c);
    out.names.push_back(reader.header()[c]);
    out.values.emplace_back(items.size());
  }
  std::vector<bool> known(items.size(), false);
  std::vector<std::string_view> cells;
  while (reader.next(cells)) {
    const int32_t item = items.find(cells[at_item]);
    if (item < 0 || known[item]) {
      throw reader.error(at_item,
                         fmt::format("item '{}' {}", printable(cells[at_item]),
                                     item < 0 ? "is not in item_map.tsv" : "stands twice"));
    }
    known[item] = true;
    for (size_t c = 0; c < columns.size(); ++c) out.values[c][item] = cells[columns[c]];
  }
  return out;
}

Json parse_dataset_json(std::string_view text, const std::string& what) {
  Json about = parse_json(text, what);
  if (!about.is_object()) throw data_error("{}: wanted one JSON object", what);
  for (const char* key : {"n_users", "n_items", "n_interactions", "n_seen"}) {
    check_count(about, key, what);
  }
  const auto is_text = [&](const Json& of, const char* key) {
    return of.contains(key) && of[key].is_string();
  };
  if (!is_text(about, "name") || !is_text(about, "train_sha256") || !about.contains("split") ||
      !about["split"].is_object() || !is_text(about["split"], "kind")) {
    throw data_error(
        "{}: wanted name, split.kind and train_sha256; the folder is damaged, import "
        "it again",
        what);
  }
  if (about["split"].contains("folds")) {
    const Json& folds = about["split"]["folds"];
    if (!folds.is_number_integer() || folds < 2 || folds > 255) {
      throw data_error("{}: split.folds: wanted 2 to 255", what);
    }
  }
  if (about.contains("files")) {
    if (!about["files"].is_object()) throw data_error("{}: 'files' is not an object", what);
    for (const auto& [file, hash] : about["files"].items()) {
      if (!hash.is_string()) {
        throw data_error("{}: the hash of '{}' is not text", what, printable(file));
      }
    }
  }
  return about;
}

bool is_dataset_folder(const fs::path& path) {
  std::error_code error;
  return folder_exists(path) && fs::is_regular_file(path / "dataset.json", error);
}

void read_media(const fs::path& folder, const std::function<bool(const MediaRow&)>& visit) {
  const fs::path path = folder / "media.tsv";
  if (!fs::exists(path)) return;
  std::ifstream in = open_table(path);
  TableReader reader(in, path.string());
  if (reader.header() != std::vector<std::string>{"item_id", "modality", "path", "sha256"}) {
    throw data_error("{}:1: wanted the columns item_id, modality, path, sha256", path.string());
  }
  std::vector<std::string_view> cells;
  while (reader.next(cells)) {
    if (!visit({cells[0], cells[1], cells[2], cells[3]})) {
      throw reader.error(0, fmt::format("item '{}' is not in item_map.tsv", printable(cells[0])));
    }
  }
}

std::map<std::string, std::string> media_files(const fs::path& folder, std::string_view modality) {
  std::map<std::string, std::string> out;
  read_media(folder, [&](const MediaRow& row) {
    if (row.modality == modality) out.emplace(row.item, row.path);
    return true;
  });
  return out;
}

Json read_dataset_json(const fs::path& folder, bool check_hashes) {
  std::error_code error;
  if (!folder_exists(folder) && !fs::exists(folder, error)) {
    throw data_error("no dataset folder {}; make one with 'tessera import FILES -o {}'",
                     folder.string(), folder.string());
  }
  if (!is_dataset_folder(folder)) {
    throw data_error(
        "{} is no dataset folder: it has no dataset.json; make one with "
        "'tessera import {} -o DIR'",
        folder.string(), folder.string());
  }
  const fs::path path = folder / "dataset.json";
  Json about = parse_dataset_json(read_file(path), path.string());
  if (!check_hashes || !about.contains("files")) return about;
  for (const char* file : {"interactions.tsv", "user_map.tsv", "item_map.tsv", "items.tsv"}) {
    const auto hash = about["files"].find(file);
    if (hash == about["files"].end()) continue;
    open_table(folder / file);
    if (sha256_of_file(folder / file) != hash->get<std::string>()) {
      throw data_error(
          "{}: its sha256 is not the one in dataset.json: the file was changed or "
          "damaged; import it again",
          (folder / file).string());
    }
  }
  return about;
}

FolderRows read_folder(const fs::path& folder, const Json& about, bool ratings_and_events) {
  const auto read_map = [&](const char* file, const char* key) {
    std::ifstream in = open_table(folder / file);
    Vocabulary ids = read_id_map(in, (folder / file).string());
    if (ids.size() != about[key].get<int64_t>()) {
      throw data_error("{}: {} ids, dataset.json says {}", (folder / file).string(), ids.size(),
                       about[key].get<int64_t>());
    }
    return ids;
  };
  Vocabulary users = read_map("user_map.tsv", "n_users");
  Vocabulary items = read_map("item_map.tsv", "n_items");
  const fs::path path = folder / "interactions.tsv";
  std::ifstream in = open_table(path);
  FolderRows out = read_folder_interactions(in, path.string(), std::move(users), std::move(items),
                                            ratings_and_events);
  const int64_t wanted = about["n_interactions"].get<int64_t>() + about["n_seen"].get<int64_t>();
  if (out.table.n_rows() != wanted) {
    throw data_error("{}: {} rows, dataset.json says {}", path.string(), out.table.n_rows(),
                     wanted);
  }
  const bool folds = about["split"].contains("folds");
  if (folds == out.fold.empty() && (folds || out.table.n_rows() > 0)) {
    throw data_error("{}: column fold {}, dataset.json says {}", path.string(),
                     folds ? "missing" : "found", folds ? "folds" : "none");
  }
  if (folds) {
    const auto n_folds = about["split"]["folds"].get<int64_t>();
    for (const uint8_t fold : out.fold) {
      if (fold >= n_folds) {
        throw data_error("{}: fold {}: wanted 0 to {}", path.string(), fold, n_folds - 1);
      }
    }
  }
  if (about.contains("time_unit") && about["time_unit"].is_string() && !out.table.time.empty()) {
    out.table.time_unit = about["time_unit"].get<std::string>();
  }
  return out;
}

}  // namespace tessera

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/text.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

/// Appends items: text columns by name, numeric arrays as vectors.
class ItemBuilder {
 public:
  explicit ItemBuilder(ItemTable& table) : table_(table), rows_before_(table.ids.size()) {}

  /// The row of a new id; -1 for a repeated one (counted) and, with the reason, for a bad one.
  int64_t add(std::string_view id, std::string& reason) {
    reason = id_problem(id, "item");
    if (!reason.empty()) return -1;
    if (table_.ids.find(id) >= 0) {
      ++repeated_;
      return -1;
    }
    const int64_t row = table_.ids.add(id);
    for (auto& column : table_.values) column.emplace_back();
    return row;
  }
  void set(int64_t row, const std::string& name, std::string_view text) {
    if (text.empty()) return;
    table_.values[column(name)][row] = tsv_cell(text);
  }
  /// Makes sure that a column is there, so that empty ones keep their place.
  size_t column(const std::string& name) {
    const auto found = std::find(table_.columns.begin(), table_.columns.end(), name);
    if (found != table_.columns.end()) {
      return static_cast<size_t>(found - table_.columns.begin());
    }
    table_.columns.push_back(name);
    table_.values.emplace_back(table_.ids.size());
    return table_.columns.size() - 1;
  }
  bool has_column(const std::string& name) const {
    return std::find(table_.columns.begin(), table_.columns.end(), name) != table_.columns.end();
  }
  void set_vector(int64_t row, const std::string& name, std::span<const float> values) {
    auto found = std::find_if(vectors_.begin(), vectors_.end(),
                              [&](const auto& v) { return v.name() == name; });
    if (found == vectors_.end()) {
      vectors_.emplace_back(name);
      found = vectors_.end() - 1;
    }
    found->add(row, values);
  }

  void finish(Json& report) {
    Json notes = Json::array();
    Json vectors = Json::object();
    std::set<std::string> used;
    for (const auto& v : table_.vectors) used.insert(v.modality);
    for (auto& column_of_vectors : vectors_) {
      const std::string& name = column_of_vectors.name();
      if (!column_of_vectors.fixed()) {
        for (const auto& [row, text] : column_of_vectors.text()) set(row, name, text);
        notes.push_back(fmt::format("'{}' has lists of different lengths: kept as text, no feature",
                                    shown_text(name)));
        continue;
      }
      ItemTable::Vectors taken = column_of_vectors.take();
      std::string modality = taken.modality;
      for (int i = 2; used.count(modality); ++i) modality = fmt::format("{}_{}", taken.modality, i);
      taken.modality = modality;
      used.insert(modality);
      vectors[modality] = {{"width", taken.width}, {"rows", taken.item_rows.size()}};
      table_.vectors.push_back(std::move(taken));
    }
    name_title(notes);
    report["rows"] = table_.ids.size() - rows_before_;
    report["repeated"] = repeated_;
    report["vectors"] = vectors;
    report["notes"] = notes;
  }

  /// DIR/<item id>.jpg, .jpeg or .png.
  void find_images(const fs::path& folder, Json& report) {
    std::error_code error;
    if (!fs::is_directory(folder, error)) {
      throw data_error("no folder {}: wanted pictures named <item id>.jpg, .jpeg or .png",
                       folder.string());
    }
    std::map<std::string, std::string> files;  // item id -> file name
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
      const fs::path path = it->path();
      const std::string extension = squeezed(path.extension().string());
      if (extension != "jpg" && extension != "jpeg" && extension != "png") continue;
      auto& name = files[path.stem().string()];
      const std::string found = path.filename().string();
      if (name.empty() || found < name) name = found;  // one order, whatever the file system's
    }
    if (error) throw data_error("cannot read the folder {}: {}", folder.string(), error.message());
    int64_t found = 0;
    for (int64_t row = rows_before_; row < table_.ids.size(); ++row) {
      const auto file = files.find(std::string(table_.ids[row]));
      if (file == files.end()) continue;
      table_.media.push_back({row, "image", (folder / file->second).string()});
      files.erase(file);
      ++found;
    }
    report["media"] = {{"folder", shown_text(folder.string())},
                       {"modality", "image"},
                       {"found", found},
                       {"missing", table_.ids.size() - rows_before_ - found},
                       {"of_no_item", files.size()}};
  }

 private:
  /// A catalogue's title under the name that is looked for.
  void name_title(Json& notes) {
    if (has_column("title")) return;
    for (const char* name :
         {"Title", "movie_title", "item_title", "name", "Name", "item_name", "product_title"}) {
      for (auto& column : table_.columns) {
        if (column != name) continue;
        column = "title";
        notes.push_back(fmt::format("column '{}' is the title", name));
        return;
      }
    }
  }

  ItemTable& table_;
  int64_t rows_before_, repeated_ = 0;
  std::vector<VectorColumn> vectors_;
};

/// Blank-separated numbers; false when one is none, or not finite.
bool parse_floats(std::string_view text, std::vector<float>& values) {
  values.clear();
  std::vector<std::string> cells;
  split_cells(text, " ", cells);
  for (const auto& cell : cells) {
    float value = 0;
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (error != std::errc() || end != cell.data() + cell.size() || !std::isfinite(value)) {
      return false;
    }
    values.push_back(value);
  }
  return true;
}

/// A JSON value as the text of a cell: lists joined by '|', objects as JSON.
std::string json_cell(const Json& value) {
  if (value.is_null()) return {};
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "1" : "0";
  if (value.is_array()) {
    std::string out;
    for (const auto& part : value) {
      if (!out.empty()) out += '|';
      out += json_cell(part);
    }
    return out;
  }
  return value.dump();
}

/// Numbers only, and at least one; false when one of them is no finite float32.
bool numeric_list(const Json& value, std::vector<float>& numbers) {
  if (!value.is_array() || value.empty()) return false;
  numbers.clear();
  for (const auto& part : value) {
    if (!part.is_number()) return false;
    const auto number = static_cast<float>(part.get<double>());
    if (!std::isfinite(number)) return false;
    numbers.push_back(number);
  }
  return true;
}

/// Runs `use` on each object of JSON lines; it returns why the line is bad, or an empty string.
void for_each_object(const Detected& file, BadLines& bad,
                     const std::function<std::string(const Json&)>& use) {
  for_each_line(file, bad, [&](std::string_view line, int64_t number) {
    if (line.find_first_not_of(" \t") == std::string_view::npos) return;
    int64_t column = 1;
    std::string reason;
    const auto object = parse_json_line(line, column, reason);
    if (object) reason = use(*object);
    if (!object || !reason.empty()) bad.add(file.path.string(), number, column, reason);
  });
}

/// The id under `key`; false when it is a list or an object.
bool json_id(const Json& object, const std::string& key, std::string& id) {
  id.clear();
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return true;
  if (found->is_structured()) return false;
  id = found->is_string() ? found->get<std::string>() : found->dump();
  return true;
}

/// Labels of Gorse: numeric lists become vectors, the rest columns; nested names joined by '_'.
void read_labels(const Json& labels, const std::string& name, int64_t row, ItemBuilder& items) {
  std::vector<float> numbers;
  if (labels.is_object()) {
    for (const auto& [key, value] : labels.items()) {
      read_labels(value, name.empty() ? key : name + "_" + key, row, items);
    }
  } else if (numeric_list(labels, numbers)) {
    items.set_vector(row, name.empty() ? "labels" : name, numbers);
  } else {
    items.set(row, name.empty() ? "labels" : tsv_cell(name), json_cell(labels));
  }
}

void read_gorse_items(const Detected& file, ItemBuilder& items, BadLines& bad) {
  for (const char* name : {"title", "categories", "is_hidden", "timestamp"}) items.column(name);
  for_each_object(file, bad, [&](const Json& object) -> std::string {
    std::string id, reason;
    if (!json_id(object, "ItemId", id)) return "ItemId is a list or an object; write text";
    const int64_t row = items.add(id, reason);
    if (row < 0) return reason;
    bool has_title = false;
    for (const auto& [key, value] : object.items()) {
      if (key == "Categories") {
        items.set(row, "categories", json_cell(value));
      } else if (key == "IsHidden") {
        items.set(row, "is_hidden", value == Json(true) ? "1" : "0");
      } else if (key == "Timestamp") {
        items.set(row, "timestamp", json_cell(value));
      } else if (key == "Comment") {
        items.set(row, "comment", json_cell(value));
      } else if (key == "Labels") {
        read_labels(value, "", row, items);
        has_title = value.is_object() && value.contains("title");
      } else if (key != "ItemId") {
        items.set(row, tsv_cell(key), json_cell(value));
      }
    }
    if (!has_title && object.contains("Comment")) {
      items.set(row, "title", json_cell(object.at("Comment")));
    }
    return {};
  });
}

void read_json_catalogue(const Detected& file, ItemBuilder& items, BadLines& bad) {
  const std::string& id_column = file.names[file.column("item")];
  for (const auto& name : file.names) {
    if (name != id_column) items.column(tsv_cell(name));
  }
  for_each_object(file, bad, [&](const Json& object) -> std::string {
    std::string id, reason;
    if (!json_id(object, id_column, id)) {
      return fmt::format("'{}' is a list or an object; write text", printable(id_column));
    }
    const int64_t row = items.add(id, reason);
    if (row < 0) return reason;
    for (const auto& [key, value] : object.items()) {
      if (key != id_column) items.set(row, tsv_cell(key), json_cell(value));
    }
    return {};
  });
}

void read_item_table(const Detected& file, ItemBuilder& items, BadLines& bad) {
  const auto id_column = static_cast<size_t>(file.column("item"));
  const auto type = [&](size_t c) { return c < file.types.size() ? file.types[c] : std::string(); };
  for (size_t c = 0; c < file.names.size(); ++c) {
    if (c != id_column && type(c) != "float_seq") items.column(tsv_cell(file.names[c]));
  }
  std::vector<float> values;
  for_each_row(file, bad, [&](std::span<const std::string_view> cells) -> std::optional<Problem> {
    for (size_t c = 0; c < cells.size(); ++c) {
      if (c != id_column && invalid_utf8(cells[c]) != std::string_view::npos) {
        return Problem{static_cast<int>(c),
                       "text that is not UTF-8; convert the file (iconv -f latin1 -t utf-8)"};
      }
      if (type(c) == "float_seq" && !parse_floats(cells[c], values)) {
        return Problem{static_cast<int>(c),
                       fmt::format("'{}' is not a list of finite numbers; write them separated by "
                                   "blanks",
                                   printable(cells[c], 30))};
      }
    }
    std::string reason;
    const int64_t row = items.add(cells[id_column], reason);
    if (row < 0) {
      if (reason.empty()) return std::nullopt;
      return Problem{static_cast<int>(id_column), reason};
    }
    for (size_t c = 0; c < cells.size(); ++c) {
      if (c == id_column) continue;
      if (type(c) == "float_seq") {
        parse_floats(cells[c], values);
        if (!values.empty()) items.set_vector(row, file.names[c], values);
      } else {
        items.set(row, tsv_cell(file.names[c]), cells[c]);
      }
    }
    return std::nullopt;
  });
}

void check_names(const Detected& file) {
  for (const auto& name : file.names) {
    if (invalid_utf8(name) == std::string_view::npos) continue;
    throw data_error("{}: the header is not UTF-8; convert the file (iconv -f latin1 -t utf-8)",
                     file.path.string());
  }
}

bool is_json_lines(const Detected& file) {
  return file.kind == "catalogue table" && file.delimiter.empty();
}

}  // namespace

void read_items(const Detected& file, const ReadOptions& options, ItemTable& into, Json& report) {
  Detected chosen = file;
  if (!options.item_id_col.empty() && file.kind != "Gorse JSONL items") {
    chosen.columns = {{"item", chosen_column(file, options.item_id_col, "`item_id`")}};
  }
  const std::string name = chosen.path.string();
  if (chosen.use == Use::refused) {
    throw data_error("{}: {}: {}", name, chosen.kind, chosen.notes.empty() ? "" : chosen.notes[0]);
  }
  if (chosen.use != Use::items) {
    throw data_error("{} is {} ({}), wanted a catalogue of items", name, chosen.kind,
                     use_name(chosen.use));
  }
  check_names(chosen);
  BadLines bad(options);
  ItemBuilder items(into);
  if (chosen.kind == "Gorse JSONL items") {
    read_gorse_items(chosen, items, bad);
  } else if (is_json_lines(chosen)) {
    read_json_catalogue(chosen, items, bad);
  } else {
    read_item_table(chosen, items, bad);
  }
  report["file"] = chosen.json();
  items.finish(report);
  if (report.at("rows") == 0 && report.at("repeated") == 0) {
    throw data_error("{}: no items in it", name);
  }
  for (const auto& text : options.text) {
    if (items.has_column(text)) continue;
    throw usage_error("`text` '{}': {} has no such column{}; its columns are {}", printable(text),
                      name, did_you_mean(text, into.columns),
                      printable(fmt::format("{}", fmt::join(into.columns, ", ")), 400));
  }
  const fs::path images = options.images.empty() ? chosen.images : options.images;
  if (!images.empty()) items.find_images(images, report);
  report["bad_lines"] = bad.count();
  report["bad_line_examples"] = bad.examples();
}

int64_t count_users(const Detected& file, const ReadOptions& options, Json& report) {
  BadLines bad(options);
  int64_t rows = 0;
  if (file.use != Use::users) {
    throw data_error("{} is {} ({}), wanted a table of users", file.path.string(), file.kind,
                     use_name(file.use));
  }
  if (file.kind == "Gorse JSONL users") {
    for_each_object(file, bad, [&](const Json& object) -> std::string {
      std::string id;
      if (!json_id(object, "UserId", id)) return "UserId is a list or an object; write text";
      const std::string reason = id_problem(id, "user");
      rows += reason.empty();
      return reason;
    });
  } else {
    const int column = file.column("user");
    for_each_row(file, bad, [&](std::span<const std::string_view> cells) -> std::optional<Problem> {
      const std::string reason = id_problem(cells[column], "user");
      if (!reason.empty()) return Problem{column, reason};
      ++rows;
      return std::nullopt;
    });
  }
  report["file"] = file.json();
  report["rows"] = rows;
  report["bad_lines"] = bad.count();
  report["notes"] = {"user columns are read by no model: counted, not kept"};
  return rows;
}

EventRoles parse_gorse_config(std::string_view text, const std::string& name) {
  EventRoles roles;
  const std::pair<std::string_view, std::vector<std::string>*> keys[] = {
      {"positive_feedback_types", &roles.positive}, {"read_feedback_types", &roles.read}};
  // Only `key = [ "a", 'b' ]` matters; comments may stand anywhere, lists may span lines.
  size_t at = 0;
  const auto skip = [&](bool line_ends) {
    while (at < text.size()) {
      const char c = text[at];
      if (c == ' ' || c == '\t' || (line_ends && (c == '\n' || c == '\r'))) {
        ++at;
      } else if (c == '#') {
        at = std::min(text.find('\n', at), text.size());
      } else {
        return;
      }
    }
  };
  const auto fail = [&](std::string_view key, const std::string& why) {
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<int64_t>(at), '\n');
    return data_error("{}:{}: {}: {}; write {} = [\"star\", \"like\"]", name, line, key, why, key);
  };
  while (at < text.size()) {
    skip(true);
    const size_t line_end = std::min(text.find('\n', at), text.size());
    for (const auto& [key, list] : keys) {
      if (!text.substr(at, line_end - at).starts_with(key)) continue;
      size_t after = at + key.size();
      while (after < line_end && (text[after] == ' ' || text[after] == '\t')) ++after;
      if (after >= line_end || text[after] != '=') continue;
      at = after + 1;
      skip(false);
      if (at >= text.size() || text[at] != '[') throw fail(key, "wanted a list in brackets");
      ++at;
      for (;;) {
        skip(true);
        if (at >= text.size()) throw fail(key, "the list is not closed");
        const char c = text[at];
        if (c == ']') break;
        if (c == ',') {
          ++at;
          continue;
        }
        if (c != '"' && c != '\'') throw fail(key, "wanted text in quotes");
        const size_t end = text.find_first_of(std::string{c, '\n'}, at + 1);
        if (end == std::string_view::npos || text[end] != c) {
          throw fail(key, "text in quotes is not closed");
        }
        const std::string type(text.substr(at + 1, end - at - 1));
        const std::string reason = id_problem(type, "event type");
        if (!reason.empty()) throw fail(key, reason);
        list->push_back(type);
        at = end + 1;
      }
      break;
    }
    at = std::min(text.find('\n', at), text.size());
  }
  return roles;
}

EventRoles read_gorse_config(const std::filesystem::path& path) {
  return parse_gorse_config(read_file(path), path.string());
}

}  // namespace tessera

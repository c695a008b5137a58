#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/text.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

constexpr size_t kSample = 1 << 18;
constexpr size_t kSampleLines = 200;

/// The start of a file, in lines; the last one is left out when the sample cuts it.
struct Sample {
  std::string bytes;
  std::vector<std::string> lines;
  bool whole = false;  // the sample is the whole file
};

Sample take_sample(const Detected& file) {
  Sample sample;
  const auto in = open_stream(file);
  sample.bytes.resize(kSample);
  in->read(sample.bytes.data(), kSample);
  sample.bytes.resize(static_cast<size_t>(std::max<std::streamsize>(in->gcount(), 0)));
  sample.whole = in->peek() == std::char_traits<char>::eof();
  std::string_view rest = sample.bytes;
  if (rest.starts_with("\xef\xbb\xbf")) rest.remove_prefix(3);
  while (!rest.empty() && sample.lines.size() < kSampleLines) {
    const size_t end = rest.find('\n');
    if (end == std::string_view::npos && !sample.whole && !sample.lines.empty()) break;
    std::string_view line = rest.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    sample.lines.emplace_back(line);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  }
  return sample;
}

std::string lower_extension(const fs::path& path) { return lower(path.extension().string()); }

std::string delimiter_word(std::string_view delimiter) {
  if (delimiter == "\t") return "tab";
  if (delimiter == ",") return "comma";
  if (delimiter == ";") return "semicolon";
  if (delimiter == "|") return "pipe";
  if (delimiter == " ") return "space";
  return fmt::format("'{}'", delimiter);
}

std::string delimiter_of(const std::string& typed) {
  if (typed.empty() || typed == "::" || typed == " " || typed == "\t") return typed;
  const std::string word = squeezed(typed);
  if (word == "tab" || typed == "\\t") return "\t";
  if (word == "comma") return ",";
  if (word == "semicolon") return ";";
  if (word == "pipe") return "|";
  if (word == "space" || word == "blank") return " ";
  const auto byte = static_cast<unsigned char>(typed.front());
  if (typed.size() == 1 && byte > 0x20 && byte < 0x7f && typed != "\"") return typed;
  throw usage_error(
      "`delimiter` '{}': wanted one character, '::' or one of tab, comma, semicolon, "
      "pipe, space{}",
      printable(typed), did_you_mean(typed, {"tab", "comma", "semicolon", "pipe", "space"}));
}

bool is_number(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

/// Refused kinds: what it is, and how to convert it.
struct Refusal {
  std::string kind, how;
};
std::optional<Refusal> refused_kind(const fs::path& path, std::string_view bytes) {
  const std::string extension = lower_extension(path);
  const auto is = [&](std::initializer_list<std::string_view> list) {
    return std::find(list.begin(), list.end(), extension) != list.end();
  };
  const std::string name = printable(path.filename().string());
  const Refusal torch{
      "PyTorch file",
      fmt::format("it may run code when loaded; convert it: python -c \"import torch, numpy as np; "
                  "np.save('image_feat.npy', torch.load('{}', weights_only=True).numpy())\"",
                  name)};
  const Refusal pickle{
      "pickle",
      fmt::format("it may run code when loaded; convert it where you trust it: python -c \"import "
                  "pandas as pd; pd.DataFrame(pd.read_pickle('{}')).to_csv('{}.tsv', sep='\\t', "
                  "index=False)\"",
                  name, printable(path.stem().string()))};
  if (is({".pth", ".pt", ".ckpt"})) return torch;
  if (bytes.size() >= 2 && bytes[0] == '\x80' && bytes[1] >= 2 && bytes[1] <= 5) return pickle;
  if (is({".pkl", ".pickle", ".p", ".joblib"})) return pickle;
  if (bytes.starts_with("SQLite format 3")) {
    return Refusal{"SQLite",
                   fmt::format("not read in this build; convert it: sqlite3 -header -separator "
                               "$'\\t' {} 'select * from TABLE' > interactions.tsv",
                               name)};
  }
  if (bytes.starts_with("\x1f\x8b")) {
    return Refusal{"gzip archive", fmt::format("unpack it first: gunzip -k {}", name)};
  }
  if (bytes.starts_with("PK\x03\x04")) {
    return Refusal{extension == ".npz" ? "npz" : "zip archive",
                   extension == ".npz"
                       ? fmt::format("save its array as .npy: python -c \"import numpy as np; "
                                     "a = np.load('{}'); print(a.files); "
                                     "np.save('image_feat.npy', a[a.files[0]])\"",
                                     name)
                       : fmt::format("unpack it first: unzip {}", name)};
  }
  if (bytes.starts_with("ARROW1")) {
    return Refusal{"Arrow file",
                   fmt::format("convert it: python -c \"import pandas as pd; "
                               "pd.read_feather('{}').to_parquet('interactions.parquet')\"",
                               name)};
  }
  if (bytes.starts_with("\x89HDF")) {
    return Refusal{"HDF5", "not read; write the table as .tsv or the array as .npy"};
  }
  if (bytes.starts_with("\xff\xd8\xff") || bytes.starts_with("\x89PNG")) {
    return Refusal{"picture", "pictures are read as a folder: --items FILE --images FOLDER"};
  }
  if (bytes.starts_with("\xff\xfe") || bytes.starts_with("\xfe\xff")) {
    return Refusal{"UTF-16 text", fmt::format("convert it: iconv -f utf-16 -t utf-8 {}", name)};
  }
  return std::nullopt;
}

void refuse(Detected& found, std::string kind, std::string how) {
  found.kind = std::move(kind);
  found.use = Use::refused;
  found.notes = {std::move(how)};
}

/// Cells per line -> the most frequent number and its share of the lines.
struct Widths {
  size_t usual = 0, first = 0;
  double share = 0;
};
Widths widths_of(const std::vector<std::string>& lines, std::string_view delimiter) {
  std::map<size_t, size_t> counts;
  std::vector<std::string> cells;
  Widths widths;
  size_t n_lines = 0;
  for (const auto& line : lines) {
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    split_cells(line, delimiter, cells);
    if (n_lines++ == 0) widths.first = cells.size();
    ++counts[cells.size()];
  }
  size_t best = 0;
  for (const auto& [width, count] : counts) {
    if (count > best) {
      best = count;
      widths.usual = width;
    }
  }
  widths.share = n_lines ? static_cast<double>(best) / static_cast<double>(n_lines) : 0;
  return widths;
}

/// "user_id:token" -> name and type; false when the type is none of RecBole's.
bool recbole_cell(const std::string& cell, std::string& name, std::string& type) {
  const size_t colon = cell.rfind(':');
  if (colon == std::string::npos || colon == 0) return false;
  name = cell.substr(0, colon);
  type = cell.substr(colon + 1);
  return type == "token" || type == "token_seq" || type == "float" || type == "float_seq";
}

std::string exact_meaning(const std::string& name) {
  bool exact = false;
  const std::string meaning = meaning_of(name, exact);
  return exact ? meaning : "";
}

/// True when the first row names columns: a flag says so, two cells have different meanings, one
/// means user or item and the row below does not, or words stand above numbers. One word such as
/// "book" may be an id.
bool looks_like_header(const std::vector<std::string>& first,
                       const std::vector<std::string>& second, const ReadOptions& options) {
  for (const auto* typed :
       {&options.user_col, &options.item_col, &options.rating_col, &options.time_col,
        &options.split_col, &options.event_col, &options.item_id_col}) {
    if (!typed->empty() && !is_number(*typed) &&
        std::find(first.begin(), first.end(), *typed) != first.end()) {
      return true;
    }
  }
  std::set<std::string> meanings;
  for (size_t c = 0; c < first.size(); ++c) {
    const std::string& cell = first[c];
    if (is_number(cell) || cell.empty()) continue;
    bool exact = false, exact_below = false;
    const std::string meaning = meaning_of(cell, exact);
    if (meaning.empty() || cell.size() == 1) continue;
    if (c < second.size() && meaning_of(second[c], exact_below) == meaning &&
        (exact_below || !exact)) {
      return false;
    }
    if (exact) meanings.insert(meaning);
    const std::string word = squeezed(cell);
    const bool id = exact && word.ends_with("id");
    const bool named = (word.starts_with("user") || word.starts_with("item")) &&
                       !std::isdigit(static_cast<unsigned char>(word.back()));
    if ((meaning == "user" || meaning == "item") && (id || named)) return true;
  }
  if (meanings.size() >= 2) return true;
  for (const auto& cell : first) {
    if (is_number(cell) || cell.empty()) return false;
  }
  for (size_t c = 0; c < std::min(first.size(), second.size()); ++c) {
    if (is_number(second[c])) return true;
  }
  return false;
}

constexpr const char* kMeanings[] = {"user",     "item",  "rating", "time",
                                     "position", "split", "event",  "list"};

std::vector<std::pair<const char*, const std::string*>> column_flags(const ReadOptions& options) {
  return {{"user", &options.user_col},     {"item", &options.item_col},
          {"rating", &options.rating_col}, {"time", &options.time_col},
          {"split", &options.split_col},   {"event", &options.event_col}};
}

/// Gives every column its meaning: flags first, then names, then (without header) order.
void find_columns(Detected& found, const ReadOptions& options) {
  std::map<std::string, int> column;
  std::vector<int> taken;
  for (const auto& [meaning, typed] : column_flags(options)) {
    const int c = chosen_column(found, *typed, fmt::format("`{}_col`", meaning));
    if (c < 0) continue;
    if (std::find(taken.begin(), taken.end(), c) != taken.end()) {
      throw usage_error("`{}_col` '{}': that column has another meaning already", meaning,
                        printable(*typed));
    }
    column[meaning] = c;
    taken.push_back(c);
  }
  const auto n = static_cast<int>(found.names.size());
  const auto is_free = [&](int c) {
    return std::find(taken.begin(), taken.end(), c) == taken.end();
  };
  const auto give = [&](const std::string& meaning, int c) {
    if (meaning.empty() || column.count(meaning) || !is_free(c)) return;
    column[meaning] = c;
    taken.push_back(c);
  };
  if (found.has_header) {
    for (const bool want_exact : {true, false}) {
      for (int c = 0; c < n; ++c) {
        bool exact = false;
        const std::string meaning = meaning_of(found.names[c], exact);
        if (exact == want_exact) give(meaning, c);
      }
    }
  } else {
    for (int c = 0; c < std::min(n, 4); ++c) give(kMeanings[c], c);
  }
  found.columns.clear();
  for (const char* meaning : kMeanings) {
    if (column.count(meaning)) found.columns.emplace_back(meaning, column[meaning]);
  }
  std::vector<std::string> unused;
  for (int c = 0; c < n; ++c) {
    if (is_free(c)) unused.push_back(printable(found.names[c]));
  }
  if (!unused.empty() && column.count("user") && column.count("item")) {
    found.notes.push_back(fmt::format("columns not used: {}", fmt::join(unused, ", ")));
  }
  if (column.count("position") && column.count("time")) {
    found.notes.push_back("the position is the order of rows; times are not read");
  }
}

void find_time_unit(Detected& found, const std::vector<std::vector<std::string>>& rows) {
  if (found.column("position") >= 0) {
    found.time_unit = "position";
    return;
  }
  const int column = found.column("time");
  if (column < 0) return;
  for (const auto& row : rows) {
    if (column >= static_cast<int>(row.size())) continue;
    double value = 0;
    const std::string& cell = row[column];
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (error == std::errc() && end == cell.data() + cell.size()) {
      found.time_unit = value > kMillisecondsFrom ? "ms" : "s";
      if (found.time_unit == "ms") return;
    } else if (parse_iso8601(cell)) {
      found.time_unit = "ISO 8601";
      return;
    }
  }
}

/// What a table with these columns is for, when nothing more special is known.
void find_use(Detected& found, const ReadOptions& options) {
  const bool user = found.column("user") >= 0, item = found.column("item") >= 0;
  if (user && item) {
    found.use = Use::interactions;
  } else if (!options.item_id_col.empty()) {
    found.use = Use::items;
    found.columns = {{"item", chosen_column(found, options.item_id_col, "`item_id`")}};
  } else if (item) {
    found.use = Use::items;
  } else if (user) {
    found.use = Use::users;
  } else {
    std::vector<std::string> shown;
    for (const auto& name : found.names) shown.push_back(printable(name));
    found.use = Use::refused;
    found.notes.insert(found.notes.begin(),
                       fmt::format("no user and no item column among {}; say --user-col NAME "
                                   "--item-col NAME",
                                   printable(fmt::format("{}", fmt::join(shown, ", ")), 400)));
  }
}

/// The first rows, cells in the order of `columns` (all cells when no column has a meaning).
void show_rows(Detected& found, const std::vector<std::vector<std::string>>& rows,
               const ReadOptions& options) {
  for (const auto& row : rows) {
    if (static_cast<int64_t>(found.rows.size()) >= options.rows) return;
    std::vector<std::string> shown;
    const bool table = found.use == Use::interactions;
    for (size_t i = 0; i < (table ? found.columns.size() : row.size()); ++i) {
      const size_t c = table ? static_cast<size_t>(found.columns[i].second) : i;
      shown.push_back(c < row.size() ? row[c] : "");
    }
    found.rows.push_back(std::move(shown));
  }
}

/// train, valid or test from "train.json", "X.valid.inter", "ratings_test.csv".
Split split_of_name(const fs::path& path) {
  std::string stem = path.stem().string();
  const size_t at = stem.find_last_of("._-");
  if (at != std::string::npos) stem = stem.substr(at + 1);
  if (stem.empty() || std::isdigit(static_cast<unsigned char>(stem.front()))) return Split::none;
  const auto split = parse_split(stem);
  return split && *split != Split::seen && *split != Split::history ? *split : Split::none;
}

std::string kind_of_table(const Detected& found) {
  const std::string name = found.path.filename().string();
  const bool four = found.names.size() == 4;
  if (found.has_header) {
    const auto has = [&](std::string_view column) {
      return std::any_of(found.names.begin(), found.names.end(),
                         [&](const auto& n) { return squeezed(n) == column; });
    };
    if (has("xlabel") && found.delimiter == "\t") return "MMRec .inter";
    if (has("userid") && has("movieid") && has("rating") && found.delimiter == ",") {
      return "MovieLens ratings.csv";
    }
    if (found.use == Use::items) return "catalogue table";
    return "delimited text";
  }
  if (four && found.delimiter == "\t" && name == "u.data") return "MovieLens u.data";
  if (four && found.delimiter == "::" && name == "ratings.dat") return "MovieLens ratings.dat";
  return "delimited text";
}

void detect_delimited(Detected& found, const Sample& sample, const std::string& delimiter,
                      const ReadOptions& options) {
  found.delimiter = delimiter;
  std::vector<std::vector<std::string>> rows;
  size_t at = 0;
  while (at < sample.lines.size() &&
         sample.lines[at].find_first_not_of(" \t") == std::string::npos) {
    ++at;
  }
  found.first_line = static_cast<int64_t>(at);
  const size_t enough =
      std::max<size_t>(100, static_cast<size_t>(std::max<int64_t>(0, options.rows)) + 1);
  for (; at < sample.lines.size() && rows.size() < enough; ++at) {
    if (sample.lines[at].find_first_not_of(" \t") == std::string::npos) continue;
    rows.emplace_back();
    split_cells(sample.lines[at], delimiter, rows.back());
  }
  const std::string name = found.path.filename().string();
  if (rows.empty()) throw data_error("{}: empty file: only blank lines", found.path.string());
  if (name == "u.item" || name == "movies.dat" || name == "u.user" || name == "users.dat") {
    const bool users = name[0] == 'u' && name.find("user") != std::string::npos;
    refuse(found, fmt::format("MovieLens {}", name),
           users ? "user tables are not used: no model reads user columns"
                 : fmt::format("write the catalogue with a header line (item_id, title, ..) and "
                               "give it as --items: (printf 'item_id|title\\n'; iconv -f latin1 -t "
                               "utf-8 {} | {}) > items.csv",
                               name,
                               name == "u.item" ? "cut -d'|' -f1,2" : "sed 's/::/|/; s/::.*//'"));
    show_rows(found, rows, options);
    return;
  }
  bool recbole = true;
  for (const auto& cell : rows.front()) {
    std::string column, type;
    if (!recbole_cell(cell, column, type)) {
      recbole = false;
      break;
    }
  }
  const std::string extension = lower_extension(found.path);
  if (recbole) {
    found.has_header = true;
    for (const auto& cell : rows.front()) {
      std::string column, type;
      recbole_cell(cell, column, type);
      found.names.push_back(column);
      found.types.push_back(type);
    }
  } else {
    found.has_header = looks_like_header(
        rows.front(), rows.size() > 1 ? rows[1] : std::vector<std::string>{}, options);
    if (found.has_header) {
      found.names = rows.front();
    } else {
      for (size_t c = 1; c <= rows.front().size(); ++c) found.names.push_back(std::to_string(c));
    }
  }
  if (found.has_header) rows.erase(rows.begin());
  find_columns(found, options);
  find_use(found, options);
  if (recbole) {
    if (extension == ".user" && found.column("user") >= 0) found.use = Use::users;
    if (extension == ".item" && found.column("item") >= 0) found.use = Use::items;
    found.kind = found.use == Use::items   ? "RecBole .item"
                 : found.use == Use::users ? "RecBole .user"
                                           : "RecBole .inter";
    if (extension == ".kg" || extension == ".link" || extension == ".net") {
      refuse(found, fmt::format("RecBole {}", extension), "graphs of knowledge are not read");
    }
  } else {
    found.kind = kind_of_table(found);
  }
  if (found.use == Use::interactions) {
    find_time_unit(found, rows);
    if (found.column("split") < 0) found.split = split_of_name(found.path);
  } else {
    found.columns.erase(std::remove_if(found.columns.begin(), found.columns.end(),
                                       [&](const auto& column) {
                                         return column.first !=
                                                (found.use == Use::users ? "user" : "item");
                                       }),
                        found.columns.end());
  }
  show_rows(found, rows, options);
}

void detect_sequences(Detected& found, const Sample& sample, const ReadOptions& options) {
  found.kind = "sequence text";
  found.use = Use::interactions;
  found.delimiter = " ";
  found.names = {"first cell", "other cells", "order in the line"};
  found.columns = {{"user", 0}, {"item", 1}, {"position", 2}};
  found.time_unit = "position";
  std::vector<std::string> cells;
  for (const auto& line : sample.lines) {
    split_cells(line, " ", cells);
    for (size_t i = 1; i < cells.size(); ++i) {
      if (static_cast<int64_t>(found.rows.size()) >= options.rows) return;
      found.rows.push_back({cells[0], cells[i], std::to_string(i - 1)});
    }
  }
}

void detect_json_interactions(Detected& found, const Sample& sample, const ReadOptions& options) {
  found.kind = "JSON user -> items";
  found.use = Use::interactions;
  found.names = {"user", "item"};
  found.columns = {{"user", 0}, {"item", 1}};
  found.split = split_of_name(found.path);
  // The first rows are read by the reader itself, from the sample; where it cuts does not matter.
  Detected head = found;
  head.bytes = std::make_shared<const std::string>(sample.bytes);
  try {
    read_json_interactions(head,
                           [&](std::string_view user, std::string_view item, int64_t, int64_t) {
                             if (static_cast<int64_t>(found.rows.size()) >= options.rows)
                               return false;
                             found.rows.push_back({std::string(user), std::string(item)});
                             return true;
                           });
  } catch (const InputError&) {
    if (sample.whole) found.notes.push_back("damaged: the import will say where");
  }
}

std::string json_text(const Json& value) {
  return value.is_string() ? value.get<std::string>()
                           : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// JSON lines: Gorse's by their keys, else a catalogue.
void detect_json_lines(Detected& found, const std::vector<Json>& lines,
                       const ReadOptions& options) {
  const Json& first = lines.front();
  if (first.contains("FeedbackType") && first.contains("UserId") && first.contains("ItemId")) {
    found.kind = "Gorse JSONL feedback";
    found.use = Use::interactions;
    const std::pair<const char*, const char*> keys[] = {{"user", "UserId"},
                                                        {"item", "ItemId"},
                                                        {"rating", "Value"},
                                                        {"time", "Timestamp"},
                                                        {"event", "FeedbackType"}};
    for (const auto& [meaning, key] : keys) {
      if (!first.contains(key)) continue;
      found.columns.emplace_back(meaning, static_cast<int>(found.names.size()));
      found.names.push_back(key);
    }
    std::vector<std::vector<std::string>> rows;
    for (const auto& line : lines) {
      rows.emplace_back();
      for (const auto& name : found.names) {
        rows.back().push_back(line.contains(name) ? json_text(line.at(name)) : "");
      }
    }
    find_time_unit(found, rows);
    show_rows(found, rows, options);
    return;
  }
  if (first.contains("ItemId")) {
    found.kind = "Gorse JSONL items";
    found.use = Use::items;
  } else if (first.contains("UserId")) {
    found.kind = "Gorse JSONL users";
    found.use = Use::users;
  } else {
    found.kind = "catalogue table";
    found.use = Use::items;
    std::set<std::string> meanings;
    for (const auto& [key, value] : first.items()) meanings.insert(exact_meaning(key));
    if (meanings.count("user") && meanings.count("item")) {
      refuse(found, "JSON lines of interactions",
             "wanted Gorse's keys (FeedbackType, UserId, ItemId) or a table; convert it: jq -r "
             "'[.user_id, .item_id] | @tsv'");
      return;
    }
    found.notes.push_back("JSON lines, one item a line");
  }
  for (const auto& line : lines) {
    for (const auto& [key, value] : line.items()) {
      if (std::find(found.names.begin(), found.names.end(), key) == found.names.end()) {
        found.names.push_back(key);
      }
    }
  }
  found.has_header = true;
  const bool users = found.use == Use::users;
  for (int c = 0; c < static_cast<int>(found.names.size()); ++c) {
    if (!users && !options.item_id_col.empty()) break;
    const std::string meaning = exact_meaning(found.names[c]);
    if (meaning == (users ? "user" : "item")) {
      found.columns.emplace_back(meaning, c);
      break;
    }
  }
  if (!users && !options.item_id_col.empty()) {
    found.columns.emplace_back("item", chosen_column(found, options.item_id_col, "`item_id`"));
  }
  if (!users && found.columns.empty()) {
    const auto id = std::find(found.names.begin(), found.names.end(), "id");
    if (id != found.names.end()) {
      found.columns.emplace_back("item", static_cast<int>(id - found.names.begin()));
    } else {
      found.use = Use::refused;
      found.notes.insert(
          found.notes.begin(),
          fmt::format("no item id among {}; say --item-id NAME",
                      printable(fmt::format("{}", fmt::join(found.names, ", ")), 400)));
    }
  }
  std::vector<std::vector<std::string>> rows;
  for (const auto& line : lines) {
    rows.emplace_back();
    for (const auto& name : found.names) {
      rows.back().push_back(line.contains(name) ? json_text(line.at(name)) : "");
    }
  }
  show_rows(found, rows, options);
}

bool detect_json(Detected& found, const Sample& sample, const ReadOptions& options) {
  std::string_view text = sample.bytes;
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  const size_t at = text.find_first_not_of(" \t\r\n");
  if (at == std::string_view::npos) return false;
  const bool named = lower_extension(found.path) == ".json" ||
                     lower_extension(found.path) == ".jsonl" ||
                     lower_extension(found.path) == ".ndjson";
  if (text[at] == '[' && named) {
    refuse(found, "JSON array",
           fmt::format(
               "wanted one object a line (JSONL) or {{\"user\": [items]}}; convert it: jq -c "
               "'.[]' {0} > {1}.jsonl",
               printable(found.path.filename().string()), printable(found.path.stem().string())));
    return true;
  }
  if (text[at] != '{') return false;
  // Objects that end on their line: JSON lines.
  std::vector<Json> lines;
  for (const auto& line : sample.lines) {
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (static_cast<int64_t>(lines.size()) >= std::max<int64_t>(20, options.rows)) break;
    int64_t column = 0;
    std::string reason;
    auto value = parse_json_line(line, column, reason);
    if (!value) break;
    lines.push_back(std::move(*value));
  }
  const auto lists = [](const Json& value) {
    return std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_array(); });
  };
  const bool one_line = std::count_if(sample.lines.begin(), sample.lines.end(), [](const auto& l) {
                          return l.find_first_not_of(" \t") != std::string::npos;
                        }) == 1;
  if (!lines.empty() && !(one_line && lists(lines.front()) && !lines.front().contains("ItemId"))) {
    detect_json_lines(found, lines, options);
    return true;
  }
  // One object over the whole file: it is {"user": [..]} when its first value is a list.
  const size_t quote = text.find_first_not_of(" \t\r\n", at + 1);
  if (quote != std::string_view::npos && text[quote] == '}') {
    throw data_error("{}: empty: no user in it", found.path.string());
  }
  size_t end = quote;
  if (quote != std::string_view::npos && text[quote] == '"') {
    for (end = quote + 1; end < text.size() && text[end] != '"'; ++end) {
      if (text[end] == '\\') ++end;
    }
    if (end < text.size()) end = text.find_first_not_of(" \t\r\n", end + 1);
    if (end < text.size() && text[end] == ':') {
      end = text.find_first_not_of(" \t\r\n", end + 1);
      if (end < text.size() && text[end] == '[') {
        detect_json_interactions(found, sample, options);
        return true;
      }
    }
  }
  if (!named) return false;
  refuse(found, "JSON",
         "wanted {\"user\": [items]} or one object a line (JSONL); write one of these");
  return true;
}

bool looks_like_gorse_config(const fs::path& path, const Sample& sample) {
  return lower_extension(path) == ".toml" ||
         sample.bytes.find("positive_feedback_types") != std::string::npos;
}

void detect_text(Detected& found, const Sample& sample, const ReadOptions& options) {
  if (looks_like_gorse_config(found.path, sample)) {
    found.kind = "Gorse configuration";
    found.use = Use::settings;
    const EventRoles roles = parse_gorse_config(sample.bytes, found.path.string());
    found.notes.push_back(fmt::format("positive: {}; read: {}", fmt::join(roles.positive, ", "),
                                      fmt::join(roles.read, ", ")));
    return;
  }
  if (options.delimiter.empty() && detect_json(found, sample, options)) return;
  if (!options.delimiter.empty()) {
    const std::string delimiter = delimiter_of(options.delimiter);
    const Widths widths = widths_of(sample.lines, delimiter);
    if (widths.usual < 2) {
      throw data_error(
          "{}: only one column found with the delimiter {}; leave `delimiter` out or "
          "say another",
          found.path.string(), delimiter_word(delimiter));
    }
    detect_delimited(found, sample, delimiter, options);
    return;
  }
  const bool named_sequence =
      squeezed(found.path.filename().string()).find("seq") != std::string::npos;
  std::string best;
  size_t best_width = 1;
  for (const std::string delimiter : {"::", "\t", ",", ";", "|"}) {
    const Widths widths = widths_of(sample.lines, delimiter);
    if (widths.usual < 2 || widths.share < 0.9) continue;
    if (widths.usual > best_width) {
      best = delimiter;
      best_width = widths.usual;
    }
    if (delimiter == "::" || delimiter == "\t") break;
  }
  if (!best.empty()) return detect_delimited(found, sample, best, options);
  const Widths blanks = widths_of(sample.lines, " ");
  if (blanks.usual >= 2 && blanks.share >= 0.9 && !named_sequence) {
    return detect_delimited(found, sample, " ", options);
  }
  // Nothing is regular: a ragged table when most lines have the delimiter, else sequences.
  for (const std::string delimiter : {"::", "\t", ",", ";", "|"}) {
    const Widths widths = widths_of(sample.lines, delimiter);
    if (widths.first >= 2 && widths.usual >= 2 && widths.share >= 0.5) {
      return detect_delimited(found, sample, delimiter, options);
    }
  }
  const Widths lone = widths_of(sample.lines, "\n");
  size_t sequences = 0, lines = 0;
  std::vector<std::string> cells;
  for (const auto& line : sample.lines) {
    split_cells(line, " ", cells);
    lines += !cells.empty();
    sequences += cells.size() >= 2;
  }
  if (lone.first > 0 && sequences * 2 > lines) return detect_sequences(found, sample, options);
  if (lines == 0) throw data_error("{}: empty file: only blank lines", found.path.string());
  throw data_error(
      "{}: only one column found (tried tab, comma, semicolon, pipe, space and '::'); say "
      "`delimiter` CHARACTER",
      found.path.string());
}

Detected detect_content(Detected found, const ReadOptions& options) {
  const std::string name = found.path.string();
  if (size_of(found) == 0) throw data_error("{}: empty file; wanted rows of users and items", name);
  const Sample sample = take_sample(found);
  const std::string_view bytes = sample.bytes;
  if (const auto refusal = refused_kind(found.path, bytes)) {
    refuse(found, refusal->kind, refusal->how);
    return found;
  }
  if (bytes.starts_with("\x93NUMPY")) {
    found.kind = "npy";
    found.use = Use::feature;
    return found;
  }
  const std::string extension = lower_extension(found.path);
  if (extension == ".safetensors") {
    found.kind = "safetensors";
    found.use = Use::feature;
    return found;
  }
  if (extension == ".b") {
    found.kind = "Amazon image features";
    found.use = Use::feature;
    return found;
  }
  if (bytes.starts_with("PAR1") || extension == ".parquet") {
    found.kind = "Parquet";
    found.use = Use::interactions;
    const ParquetHead head = parquet_head(found, std::max<int64_t>(options.rows, 3));
    found.names = head.names;
    found.has_header = true;
    find_columns(found, options);
    find_use(found, options);
    if (found.use == Use::items) found.kind = "Parquet catalogue";
    find_time_unit(found, head.rows);
    found.n_rows = head.n_rows;
    found.notes.push_back(fmt::format("{} rows", head.n_rows));
    if (found.use == Use::interactions && found.column("split") < 0) {
      found.split = split_of_name(found.path);
    }
    show_rows(found, head.rows, options);
    return found;
  }
  if (const size_t zero = bytes.find('\0'); zero != std::string_view::npos) {
    throw data_error(
        "{}: binary file (a zero byte at {}), wanted text, JSON or Parquet; convert it "
        "to .tsv",
        name, zero);
  }
  detect_text(found, sample, options);
  const bool fixed = found.kind == "sequence text" || found.kind == "JSON user -> items" ||
                     found.kind == "Gorse JSONL feedback";
  for (const auto& [meaning, typed] : column_flags(options)) {
    if (!fixed || typed->empty()) continue;
    throw usage_error("`{}_col` '{}': {} is {}, whose columns are fixed; leave the flag out",
                      meaning, printable(*typed), name, found.kind);
  }
  return found;
}

}  // namespace

int chosen_column(const Detected& found, const std::string& typed, const std::string& flag) {
  if (typed.empty()) return -1;
  const auto n = static_cast<int>(found.names.size());
  if (found.has_header) {
    for (int c = 0; c < n; ++c) {
      if (found.names[c] == typed) return c;
    }
    for (int c = 0; c < n; ++c) {
      if (squeezed(found.names[c]) == squeezed(typed) && !squeezed(typed).empty()) return c;
    }
  }
  int number = 0;
  const auto [end, error] = std::from_chars(typed.data(), typed.data() + typed.size(), number);
  if (error == std::errc() && end == typed.data() + typed.size()) {
    if (number >= 1 && number <= n) return number - 1;
    throw usage_error("{} {}: {} has columns 1 to {}", flag, number, found.path.string(), n);
  }
  if (!found.has_header) {
    throw usage_error("{} '{}': {} has no header; give a column number, 1 to {}", flag,
                      printable(typed), found.path.string(), n);
  }
  std::vector<std::string> shown;
  for (const auto& name : found.names) shown.push_back(printable(name));
  throw usage_error("{} '{}': {} has no such column{}; its columns are {}", flag, printable(typed),
                    found.path.string(), did_you_mean(typed, found.names),
                    printable(fmt::format("{}", fmt::join(shown, ", ")), 400));
}

std::string shown_text(std::string_view text) {
  return invalid_utf8(text) == std::string_view::npos ? std::string(text)
                                                      : printable(text, text.size());
}

int Detected::column(const std::string& meaning) const {
  for (const auto& [name, index] : columns) {
    if (name == meaning) return index;
  }
  return -1;
}

const char* use_name(Use use) {
  switch (use) {
    case Use::interactions:
      return "interactions";
    case Use::items:
      return "items";
    case Use::users:
      return "users";
    case Use::feature:
      return "feature";
    case Use::settings:
      return "settings";
    case Use::folder:
      return "folder";
    case Use::dataset:
      return "dataset";
    case Use::run:
      return "run";
    case Use::bundle:
      return "bundle";
    case Use::study:
      return "study";
    case Use::refused:
      return "refused";
  }
  return "refused";
}

Json Detected::json() const {
  Json out;
  out["path"] = shown_text(path.string());
  out["kind"] = kind;
  out["use"] = use_name(use);
  if (!delimiter.empty()) out["delimiter"] = delimiter;
  if (!names.empty()) {
    out["header"] = has_header;
    out["columns"] = Json::array();
    for (const auto& name : names) out["columns"].push_back(shown_text(name));
    Json meaning = Json::object();
    for (const auto& [name, index] : columns) meaning[name] = shown_text(names[index]);
    out["meaning"] = meaning;
  }
  if (!time_unit.empty()) out["time_unit"] = time_unit;
  if (split != Split::none) out["split"] = split_name(split);
  if (!rows.empty()) {
    out["rows"] = Json::array();
    for (const auto& row : rows) {
      Json cells = Json::array();
      for (const auto& cell : row) cells.push_back(shown_text(cell));
      out["rows"].push_back(std::move(cells));
    }
  }
  if (!images.empty()) out["images"] = shown_text(images.string());
  if (!notes.empty()) {
    out["notes"] = Json::array();
    for (const auto& note : notes) out["notes"].push_back(shown_text(note));
  }
  if (!parts.empty()) {
    out["files"] = Json::array();
    for (const auto& part : parts) out["files"].push_back(part.json());
  }
  return out;
}

Detected detect(const std::filesystem::path& path, const ReadOptions& options) {
  std::error_code error;
  const auto status = fs::status(path, error);
  if (!fs::exists(status)) {
    std::vector<std::string> beside;
    const fs::path parent = path.parent_path().empty() ? fs::path(".") : path.parent_path();
    for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
      if (beside.size() < 10000) beside.push_back(it->path().filename().string());
    }
    throw data_error("no file or folder {}{}", path.string(),
                     did_you_mean(path.filename().string(), beside));
  }
  Detected found;
  found.path = path;
  if (fs::is_directory(status)) return detect_folder(std::move(found), options);
  if (!fs::is_regular_file(status)) {
    throw data_error("{} is neither a file nor a folder", path.string());
  }
  return detect_content(std::move(found), options);
}

Detected detect_bytes(const std::string& name, std::string bytes, const ReadOptions& options) {
  Detected found;
  found.path = name;
  found.bytes = std::make_shared<const std::string>(std::move(bytes));
  return detect_content(std::move(found), options);
}

}  // namespace tessera

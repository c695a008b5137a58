#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>
#include <unordered_set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/eval/evaluate.h"

namespace tessera {
namespace {

constexpr std::string_view kBlanks = " \t\v\f";

/// Splits at every tab or comma, or at runs of blanks when `separator` is ' '.
void split_fields(std::string_view line, char separator, std::vector<std::string_view>& fields) {
  fields.clear();
  if (separator != ' ') {
    for (size_t at = 0; at <= line.size();) {
      const size_t end = std::min(line.find(separator, at), line.size());
      std::string_view field = line.substr(at, end - at);
      while (!field.empty() && field.front() == ' ') field.remove_prefix(1);
      while (!field.empty() && field.back() == ' ') field.remove_suffix(1);
      fields.push_back(field);
      at = end + 1;
    }
    return;
  }
  for (size_t at = line.find_first_not_of(kBlanks); at != std::string_view::npos;) {
    const size_t end = std::min(line.find_first_of(kBlanks, at), line.size());
    fields.push_back(line.substr(at, end - at));
    at = line.find_first_not_of(kBlanks, end);
  }
}

/// Where the columns stand; -1: not there.
struct Columns {
  int user = 0, item = 1, rank = -1, score = -1;
  size_t n = 2;
};

int find_column(const std::vector<std::string_view>& header,
                std::initializer_list<const char*> names) {
  for (size_t i = 0; i < header.size(); ++i) {
    // A RecBole header writes name:type.
    const std::string name = squeezed(header[i].substr(0, header[i].find(':')));
    for (const char* wanted : names) {
      if (name == wanted) return static_cast<int>(i);
    }
  }
  return -1;
}

std::optional<Columns> read_header(const std::vector<std::string_view>& fields) {
  Columns columns;
  columns.user = find_column(fields, {"user", "userid", "uid"});
  columns.item = find_column(fields, {"item", "itemid", "iid"});
  columns.rank = find_column(fields, {"rank"});
  columns.score = find_column(fields, {"score", "prediction", "rating"});
  columns.n = fields.size();
  if (columns.user < 0 || columns.item < 0) return std::nullopt;
  return columns;
}

double parse_number(std::string_view text, const std::string& place, int column,
                    const char* wanted) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) {
    throw data_error("{}: column {}: expected {}, got '{}'", place, column + 1, wanted,
                     printable(text));
  }
  return value;
}

struct Row {
  int32_t user, item;
  double rank, score;
};

}  // namespace

RecommendationLists parse_recommendations(std::string_view bytes, const std::string& name,
                                          const Dataset& data) {
  if (bytes.starts_with("\xef\xbb\xbf")) bytes.remove_prefix(3);
  if (bytes.find('\0') != std::string_view::npos) {
    throw data_error("{}: expected lines of user, item and score, got a binary file", name);
  }
  std::vector<Row> rows;
  std::vector<std::string_view> fields;
  std::optional<Columns> columns;
  char separator = 0;
  int64_t n_rows = 0, unknown_users = 0, unknown_items = 0, line_number = 0;
  std::string first_unknown;
  for (size_t at = 0; at < bytes.size();) {
    const size_t end = std::min(bytes.find('\n', at), bytes.size());
    std::string_view line = bytes.substr(at, end - at);
    at = end + 1;
    ++line_number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.find_first_not_of(kBlanks) == std::string_view::npos) continue;
    const auto place = [&] { return fmt::format("{}:{}", name, line_number); };
    if (separator == 0) {
      separator = line.find('\t') != std::string_view::npos  ? '\t'
                  : line.find(',') != std::string_view::npos ? ','
                                                             : ' ';
    }
    split_fields(line, separator, fields);
    if (!columns) {
      columns = read_header(fields);
      if (columns) continue;
      if (fields.size() < 2 || fields.size() > 3) {
        throw data_error(
            "{}: expected 'user item score' or a header that names user and item, got {} columns: "
            "'{}'",
            place(), fields.size(), printable(line));
      }
      columns.emplace();
      columns->n = fields.size();
      columns->score = fields.size() == 3 ? 2 : -1;
    }
    if (fields.size() != columns->n) {
      throw data_error("{}: expected {} columns, got {}", place(), columns->n, fields.size());
    }
    ++n_rows;
    Row row{};
    if (columns->rank >= 0) {
      row.rank = parse_number(fields[columns->rank], place(), columns->rank, "a rank");
    }
    if (columns->score >= 0) {
      row.score = parse_number(fields[columns->score], place(), columns->score, "a finite score");
    }
    for (const int column : {columns->user, columns->item}) {
      if (fields[column].empty()) {
        throw data_error("{}: column {}: expected an id, got nothing", place(), column + 1);
      }
    }
    row.user = data.user_ids.find(fields[columns->user]);
    row.item = data.item_ids.find(fields[columns->item]);
    if (row.user < 0) ++unknown_users;
    if (row.item < 0) ++unknown_items;
    if (row.user < 0 || row.item < 0) {
      if (first_unknown.empty()) {
        first_unknown = row.user < 0 ? fmt::format("user '{}'", printable(fields[columns->user]))
                                     : fmt::format("item '{}'", printable(fields[columns->item]));
      }
      continue;
    }
    rows.push_back(row);
  }
  if (n_rows == 0) {
    throw data_error("{}: expected lines of user, item and score, got no row", name);
  }
  if (rows.empty()) {
    throw data_error("{}: no row of it has a user and an item of dataset '{}', first {}", name,
                     data.name, first_unknown);
  }

  const bool ranked = columns->rank >= 0, scored = columns->score >= 0;
  std::stable_sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    if (a.user != b.user) return a.user < b.user;
    if (ranked && a.rank != b.rank) return a.rank < b.rank;
    if (scored && a.score != b.score) return a.score > b.score;
    return (ranked || scored) && a.item < b.item;
  });

  RecommendationLists lists;
  lists.items.resize(data.n_users);
  std::unordered_set<int32_t> in_list;
  int64_t repeats = 0, n_users = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i == 0 || rows[i].user != rows[i - 1].user) {
      in_list.clear();
      ++n_users;
    }
    if (in_list.insert(rows[i].item).second) {
      lists.items[rows[i].user].push_back(rows[i].item);
    } else {
      ++repeats;
    }
  }
  lists.audit = {{"rows", n_rows},
                 {"users_with_a_list", n_users},
                 {"rows_of_unknown_users", unknown_users},
                 {"rows_of_unknown_items", unknown_items},
                 {"repeated_rows", repeats},
                 {"sorted_by", ranked   ? "rank"
                               : scored ? "score"
                                        : "order in the file"}};
  return lists;
}

RecommendationLists read_recommendations(const std::string& path, const Dataset& data) {
  return parse_recommendations(read_file(path), path, data);
}

}  // namespace tessera

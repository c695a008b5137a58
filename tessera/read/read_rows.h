#pragma once

// What the readers of raw files share; not for other rooms.

#include <functional>
#include <istream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/stop.h"
#include "tessera/read/readers.h"

namespace tessera {

/// What is wrong with a row: which cell (0-based, -1 for the whole line), why, and what to write.
struct Problem {
  int cell = -1;
  std::string reason;
};

/// Bad lines of one call: the first beyond the tolerated number is thrown as exit 3.
class BadLines {
 public:
  explicit BadLines(const ReadOptions& options)
      : allowed_(options.max_bad_lines), stop_requested_(options.stop_requested) {}
  /// At every row: ends the call where that is wanted.
  void look() {
    if (++looks_ % 1024 == 0) end_if_stopped(stop_requested_);
  }
  /// `column` counts bytes from 1.
  void add(const std::string& file, int64_t line, int64_t column, const std::string& reason);
  int64_t count() const { return count_; }
  /// Lines without content, which are no rows.
  int64_t blank = 0;
  const std::vector<std::string>& examples() const { return examples_; }

 private:
  int64_t allowed_, count_ = 0, looks_ = 0;
  std::function<bool()> stop_requested_;
  std::vector<std::string> examples_;  // at most ten
};

/// The bytes of a file or of Detected::bytes.
std::unique_ptr<std::istream> open_stream(const Detected& file);
int64_t size_of(const Detected& file);

/// Every line without its end ('\n' or "\r\n"), the UTF-8 mark at the start skipped.
void for_each_line(const Detected& file, BadLines& bad,
                   const std::function<void(std::string_view line, int64_t number)>& use);

/// Cells of a line; `delimiter` " " stands for a run of blanks. Quotes count for ',' and ';'.
void split_cells(std::string_view line, std::string_view delimiter,
                 std::vector<std::string>& storage);

/// Every row of delimited text or Parquet with all its cells. Rows of another width go to `bad`; a
/// row for which `use` names a problem as well. Returning false ends the walk.
using UseRow = std::function<std::optional<Problem>(std::span<const std::string_view> cells)>;
void for_each_row(const Detected& file, BadLines& bad, const UseRow& use);

/// Column names (Arrow's order) of a Parquet file and its first rows as text. Exit 3 when damaged.
struct ParquetHead {
  std::vector<std::string> names;
  std::vector<std::vector<std::string>> rows;
  int64_t n_rows = 0;
};
ParquetHead parquet_head(const Detected& file, int64_t rows);

/// The first bytes of UTF-8 text that are not UTF-8, as an offset; npos when all are.
size_t invalid_utf8(std::string_view text);

/// Why `id` cannot be one, with what to write instead; empty when it can.
std::string id_problem(std::string_view id, std::string_view what);

/// A label of a split column: train, valid, val, validation, dev, test, history, seen, 0, 1, 2.
std::optional<Split> parse_split(std::string_view label);

/// A time as milliseconds since 1970, from ISO 8601 (date, optional time, fraction and zone).
struct IsoTime {
  int64_t milliseconds = 0;
};
std::optional<IsoTime> parse_iso8601(std::string_view text);

/// Numbers above this are milliseconds: as seconds they would lie past the year 5000.
inline constexpr double kMillisecondsFrom = 1e11;

/// The meaning of a column name: user, item, rating, time, position, split, event, list; empty for
/// others. `exact` tells "user_id" from "user_age".
std::string meaning_of(std::string_view name, bool& exact);

/// Walks {"user": [item, ..], ..}; ids are strings or numbers as written. `use` gets the place
/// (line and byte) of the item and ends the walk by returning false. Exit 3 where the text has
/// another form.
void read_json_interactions(const Detected& file,
                            const std::function<bool(std::string_view user, std::string_view item,
                                                     int64_t line, int64_t column)>& use);

/// The column that a flag names, by name or 1-based number; -1 when `typed` is empty, exit 2 when
/// there is none.
int chosen_column(const Detected& found, const std::string& typed, const std::string& flag);

/// As detect, but flags of interaction columns do not speak of catalogues and users.
Detected detect_source(const std::filesystem::path& path, const ReadOptions& options);

/// What a folder holds: a folder of ours, or raw files as `parts`.
Detected detect_folder(Detected found, const ReadOptions& options);

/// Words of a use, for reports and errors.
const char* use_name(Use use);

/// One JSON object of a line, at most 100 deep; nothing with the problem in `reason` and the byte
/// (from 1) in `column`.
std::optional<Json> parse_json_line(std::string_view line, int64_t& column, std::string& reason);

/// `text` when it is UTF-8, else escaped.
std::string shown_text(std::string_view text);

/// One row of interactions; a null view (data() == nullptr) where the file has no such column.
struct EventRow {
  std::string_view user = {}, item = {}, rating = {}, time = {}, position = {}, split = {},
                   event = {};
};

/// Appends rows to an EventTable: checks, parses, unites times of files with other units.
class EventBuilder {
 public:
  explicit EventBuilder(EventTable& table) : table_(table) {}

  /// What the rows of the next file carry. Exit 3 when an earlier file differs in a column that
  /// orders or labels rows.
  struct Columns {
    bool rating = false, time = false, position = false, split = false, event = false;
  };
  void begin(const std::string& file, Columns columns, Split split, int64_t expected_rows);
  /// False when the row has a problem: `field` names it ("user", "time", ..).
  bool add(const EventRow& row, std::string& field, std::string& reason);
  /// A row whose ids are known already, at this position.
  void add_indexed(int32_t user, int32_t item, int64_t position, Split split);
  /// Index of a user or item id, added when it is good and new; -1 with the reason.
  int32_t user(std::string_view id, std::string& reason) {
    return index(table_.users, id, "user", reason);
  }
  int32_t item(std::string_view id, std::string& reason) {
    return index(table_.items, id, "item", reason);
  }
  /// The next position of a user, counted over all files.
  int64_t next_position(int32_t user);
  void end();

 private:
  int32_t index(Vocabulary& ids, std::string_view id, std::string_view what, std::string& reason);
  bool parse_time(std::string_view text, int64_t& time, std::string& reason);

  EventTable& table_;
  std::string first_file_;
  Columns columns_;
  Split split_ = Split::none;
  bool started_ = false;
  int64_t file_start_ = 0;
  int is_iso_ = -1;         // of the current file: unknown, no, yes
  bool fractions_ = false;  // the current file's times are kept in milliseconds
  int64_t largest_ = 0;     // raw time of the current file
  std::vector<int32_t> positions_;
};

/// Numeric arrays that belong to items, one modality; demoted to text when widths differ.
class VectorColumn {
 public:
  explicit VectorColumn(std::string name) : name_(std::move(name)) {}
  /// False once a row of another width came (or came before): the rows are then text.
  bool add(int64_t item_row, std::span<const float> values);
  bool fixed() const { return fixed_; }
  const std::string& name() const { return name_; }
  ItemTable::Vectors take();
  /// The rows as blank-separated text, for a column of that name.
  std::vector<std::pair<int64_t, std::string>> text() const;

 private:
  std::string name_;
  bool fixed_ = true;
  std::vector<float> values_;
  std::vector<std::pair<int64_t, int64_t>> items_;  // item row, width
};

/// `name` as a modality: lower case, [a-z][a-z0-9_]*, without a tail like "_feat".
std::string modality_name(std::string_view name);

}  // namespace tessera

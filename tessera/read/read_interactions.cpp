#include <algorithm>
#include <set>

#include "tessera/base/error.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

/// Characters of a stream with their line and byte, for JSON that may be one line of gigabytes.
class JsonScanner {
 public:
  explicit JsonScanner(const Detected& file)
      : name_(file.path.string()), stream_(open_stream(file)), in_(*stream_->rdbuf()) {
    if (in_.sgetc() == 0xef) {  // UTF-8 mark
      in_.sbumpc();
      in_.sbumpc();
      in_.sbumpc();
    }
  }

  int peek() { return in_.sgetc(); }
  int next() {
    const int c = in_.sbumpc();
    if (c == '\n') {
      ++line_;
      column_ = 1;
    } else {
      ++column_;
    }
    return c;
  }
  int skip_blanks() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') next();
    return peek();
  }
  void want(char c, std::string_view after) {
    if (skip_blanks() != c) fail(fmt::format("wanted '{}' after {}", c, after));
    next();
  }
  [[noreturn]] void fail(const std::string& reason) {
    const int c = peek();
    std::string found = "the end of the file";
    if (c != std::char_traits<char>::eof()) {
      found = fmt::format("'{}'", printable(std::string(1, static_cast<char>(c))));
    }
    throw data_error("{}:{}:{}: {}, found {}; write {{\"user\": [\"item\", ..]}}", name_, line_,
                     column_, reason, found);
  }
  /// A string or a number, as the id that it names.
  void id(std::string& value, std::string_view what) {
    value.clear();
    const int first = skip_blanks();
    if (first == '"') {
      std::string raw = "\"";
      bool escaped = false;
      next();
      for (;;) {
        const int c = peek();
        if (c == std::char_traits<char>::eof() || c == '\n') fail("a string is not closed");
        next();
        raw += static_cast<char>(c);
        if (c == '\\') {
          escaped = true;
          if (peek() == std::char_traits<char>::eof()) fail("a string is not closed");
          raw += static_cast<char>(next());
        } else if (c == '"') {
          break;
        }
      }
      if (!escaped) {
        value.assign(raw, 1, raw.size() - 2);
        return;
      }
      const Json parsed = Json::parse(raw, nullptr, false);
      if (!parsed.is_string()) fail(fmt::format("the {} has a wrong escape", what));
      value = parsed.get<std::string>();
      return;
    }
    const auto digit = [](int c) { return (c >= '0' && c <= '9') || c == '-' || c == '.'; };
    if (!digit(first)) fail(fmt::format("wanted a {} id, a string or a number", what));
    while (digit(peek()) || ((peek() | 32) == 'e') || peek() == '+') {
      value += static_cast<char>(next());
    }
  }
  int64_t line() const { return line_; }
  int64_t column() const { return column_; }

 private:
  std::string name_;
  std::unique_ptr<std::istream> stream_;
  std::streambuf& in_;
  int64_t line_ = 1, column_ = 1;
};

/// About how many rows a file has: its size by the bytes between two `separator`s, the fewest of
/// three places in it. Columns that are reserved right need no second copy while they grow.
int64_t expected_rows(const Detected& file, char separator) {
  const auto in = open_stream(file);
  const int64_t size = size_of(file);
  std::string sample(1 << 16, '\0');
  double bytes_a_row = 0;
  for (const int64_t start : {int64_t{0}, size / 2, std::max<int64_t>(0, size - (1 << 16))}) {
    in->clear();
    in->seekg(start);
    in->read(sample.data(), static_cast<std::streamsize>(sample.size()));
    const auto end = sample.begin() + std::max<std::streamsize>(in->gcount(), 0);
    const auto rows = std::count(sample.begin(), end, separator);
    if (rows < 2) return 0;
    const double bytes = static_cast<double>(end - sample.begin()) / static_cast<double>(rows);
    if (bytes_a_row == 0 || bytes < bytes_a_row) bytes_a_row = bytes;
  }
  return static_cast<int64_t>(static_cast<double>(size) / std::max(bytes_a_row, 4.0) * 1.02) + 16;
}

void read_table(const Detected& file, Split split, EventBuilder& builder, BadLines& bad) {
  const auto column = [&](const char* meaning) { return file.column(meaning); };
  const int user = column("user"), item = column("item"), rating = column("rating"),
            time = column("time"), position = column("position"), label = column("split"),
            event = column("event");
  builder.begin(file.path.string(),
                {.rating = rating >= 0,
                 .time = time >= 0,
                 .position = position >= 0,
                 .split = label >= 0,
                 .event = event >= 0},
                label >= 0 ? Split::none : split,
                file.kind == "Parquet" ? file.n_rows : expected_rows(file, '\n'));
  std::string field, reason;
  for_each_row(file, bad, [&](std::span<const std::string_view> cells) -> std::optional<Problem> {
    const auto cell = [&](int c) { return c < 0 ? std::string_view() : cells[c]; };
    const EventRow row{cell(user),     cell(item),  cell(rating), cell(time),
                       cell(position), cell(label), cell(event)};
    if (builder.add(row, field, reason)) return std::nullopt;
    return Problem{file.column(field), reason};
  });
  builder.end();
}

void read_sequences(const Detected& file, Split split, EventBuilder& builder, EventTable& into,
                    BadLines& bad) {
  const std::string name = file.path.string();
  builder.begin(name, {.position = true}, split, expected_rows(file, ' '));
  into.keep_repeats = true;
  std::vector<std::string> cells;
  std::vector<int32_t> items;
  for_each_line(file, bad, [&](std::string_view line, int64_t number) {
    split_cells(line, " ", cells);
    if (cells.empty()) return;
    const auto byte = [&](size_t cell) {
      return cells[cell].empty() ? int64_t{1} : static_cast<int64_t>(line.find(cells[cell])) + 1;
    };
    if (cells.size() == 1) {
      bad.add(
          name, number, static_cast<int64_t>(line.size()) + 1,
          fmt::format("user '{}' without items; write the items after the user, or drop the line",
                      printable(cells[0])));
      return;
    }
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string reason = id_problem(cells[i], i == 0 ? "user" : "item");
      if (reason.empty()) continue;
      bad.add(name, number, byte(i), reason);
      return;
    }
    std::string reason;
    const int32_t user = builder.user(cells[0], reason);
    for (size_t i = 1; i < cells.size() && user >= 0; ++i) {
      const int32_t item = builder.item(cells[i], reason);
      if (item < 0) break;
      builder.add_indexed(user, item, builder.next_position(user), split);
    }
    if (!reason.empty()) bad.add(name, number, 1, reason);
  });
}

void read_json_split(const Detected& file, Split split, EventBuilder& builder, BadLines& bad) {
  builder.begin(file.path.string(), {}, split, expected_rows(file, ','));
  std::string field, reason;
  read_json_interactions(
      file, [&](std::string_view user, std::string_view item, int64_t line, int64_t column) {
        bad.look();
        if (!builder.add({.user = user, .item = item}, field, reason)) {
          bad.add(file.path.string(), line, column, reason);
        }
        return true;
      });
}

/// Text of a JSON scalar, as an id or a number is written; false for lists and objects.
bool scalar_text(const Json& value, std::string& text) {
  if (value.is_string()) {
    text = value.get_ref<const std::string&>();
  } else if (value.is_number() || value.is_boolean()) {
    text = value.dump();
  } else if (value.is_null()) {
    text.clear();
  } else {
    return false;
  }
  return true;
}

void read_gorse_feedback(const Detected& file, EventBuilder& builder, BadLines& bad) {
  const std::string name = file.path.string();
  builder.begin(name,
                {.rating = file.column("rating") >= 0,
                 .time = file.column("time") >= 0,
                 .event = file.column("event") >= 0},
                Split::none, expected_rows(file, '\n'));
  std::string user, item, value, time, event, field, reason;
  for_each_line(file, bad, [&](std::string_view line, int64_t number) {
    if (line.find_first_not_of(" \t") == std::string_view::npos) return;
    int64_t column = 1;
    const auto object = parse_json_line(line, column, reason);
    if (!object) {
      bad.add(name, number, column, reason);
      return;
    }
    const std::pair<const char*, std::string*> keys[] = {{"UserId", &user},
                                                         {"ItemId", &item},
                                                         {"Value", &value},
                                                         {"Timestamp", &time},
                                                         {"FeedbackType", &event}};
    for (const auto& [key, text] : keys) {
      text->clear();
      const auto found = object->find(key);
      if (found != object->end() && !scalar_text(*found, *text)) {
        bad.add(name, number, 1, fmt::format("{} is a list or an object; write text", key));
        return;
      }
    }
    if (builder.add({.user = user, .item = item, .rating = value, .time = time, .event = event},
                    field, reason)) {
      return;
    }
    // The key stands where it is written; a key that is not there has the line's start.
    for (const auto& [key, text] : keys) {
      if (file.column(field) < 0 || file.names[file.column(field)] != key) continue;
      const size_t at = line.find(fmt::format("\"{}\"", key));
      column = at == std::string_view::npos ? 1 : static_cast<int64_t>(at) + 1;
    }
    bad.add(name, number, column, reason);
  });
  builder.end();
}

/// RecBole's benchmark files with histories in the rows: X.train.inter holds sequences, possibly
/// as one row a prefix; X.valid.inter and X.test.inter hold one target a row. What one user's train
/// rows say together is one sequence; positions follow from it.
class Benchmark {
 public:
  void read(const Detected& file, Split split, EventBuilder& builder, BadLines& bad) {
    const int user_column = file.column("user"), item_column = file.column("item"),
              list_column = file.column("list");
    std::vector<std::string> cells;
    std::vector<int32_t> list;
    for_each_row(file, bad, [&](std::span<const std::string_view> row) -> std::optional<Problem> {
      split_cells(row[list_column], " ", cells);
      std::string reason = id_problem(row[user_column], "user");
      if (!reason.empty()) return Problem{user_column, reason};
      reason = id_problem(row[item_column], "item");
      if (!reason.empty()) return Problem{item_column, reason};
      for (const auto& cell : cells) {
        reason = id_problem(cell, "item");
        if (!reason.empty()) return Problem{list_column, reason};
      }
      const int32_t user = builder.user(row[user_column], reason);
      if (user < 0) return Problem{user_column, reason};
      list.clear();
      if (split == Split::train || split == Split::none) {
        for (const auto& cell : cells) {
          list.push_back(builder.item(cell, reason));
          if (list.back() < 0) return Problem{list_column, reason};
        }
      }
      const int32_t item = builder.item(row[item_column], reason);
      if (item < 0) return Problem{item_column, reason};
      if (split == Split::train || split == Split::none) {
        extend(user, list, item);
      } else {
        held_out_.push_back({user, item, split});
      }
      return std::nullopt;
    });
  }

  void finish(EventBuilder& builder, Split train) const {
    for (size_t user = 0; user < sequences_.size(); ++user) {
      for (const int32_t item : sequences_[user]) {
        const auto u = static_cast<int32_t>(user);
        builder.add_indexed(u, item, builder.next_position(u), train);
      }
    }
    for (const Split split : {Split::valid, Split::test}) {
      for (const auto& row : held_out_) {
        if (row.split != split) continue;
        builder.add_indexed(row.user, row.item, builder.next_position(row.user), split);
      }
    }
  }

 private:
  struct Row {
    int32_t user, item;
    Split split;
  };

  void extend(int32_t user, std::vector<int32_t>& list, int32_t item) {
    if (static_cast<size_t>(user) >= sequences_.size()) {
      sequences_.resize(std::max<size_t>(user + 1, sequences_.size() * 2));
    }
    auto& known = sequences_[user];
    list.push_back(item);
    const size_t both = std::min(known.size(), list.size());
    if (std::equal(known.begin(), known.begin() + static_cast<int64_t>(both), list.begin())) {
      if (list.size() > known.size()) known = list;  // one is the start of the other
    } else {
      known.push_back(item);  // the list was cut to the last ones, or the history is another
    }
  }

  std::vector<std::vector<int32_t>> sequences_;  // by user
  std::vector<Row> held_out_;
};

}  // namespace

std::optional<Json> parse_json_line(std::string_view line, int64_t& column, std::string& reason) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quoted) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (++depth > 100) {
        column = static_cast<int64_t>(i) + 1;
        reason = "nested more than 100 deep; write flat objects";
        return std::nullopt;
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  try {
    Json value = Json::parse(line);
    if (value.is_object()) return value;
    column = 1;
    reason = "not a JSON object; write one object a line";
  } catch (const nlohmann::json::parse_error& e) {
    column = static_cast<int64_t>(std::max<size_t>(e.byte, 1));
    reason = "not valid JSON; write one object a line, in UTF-8";
  } catch (const nlohmann::json::exception&) {
    column = 1;
    reason = "a number is out of range; write it as text";
  }
  return std::nullopt;
}

void read_json_interactions(
    const Detected& file,
    const std::function<bool(std::string_view, std::string_view, int64_t, int64_t)>& use) {
  JsonScanner in(file);
  in.want('{', "the start");
  std::string user, item;
  if (in.skip_blanks() == '}') {
    in.next();
  } else {
    for (;;) {
      if (in.skip_blanks() != '"') in.fail("wanted a user id in quotes");
      in.id(user, "user");
      in.want(':', "the user");
      in.want('[', "':'");
      if (in.skip_blanks() == ']') {
        in.next();
      } else {
        for (;;) {
          in.skip_blanks();
          const int64_t line = in.line(), column = in.column();
          in.id(item, "item");
          if (!use(user, item, line, column)) return;
          if (in.skip_blanks() == ']') {
            in.next();
            break;
          }
          in.want(',', "an item");
        }
      }
      if (in.skip_blanks() == '}') {
        in.next();
        break;
      }
      in.want(',', "a user's items");
    }
  }
  if (in.skip_blanks() != std::char_traits<char>::eof()) in.fail("wanted nothing after the object");
}

void read_interactions(const std::vector<Detected>& files, const ReadOptions& options,
                       EventTable& into, Json& report) {
  BadLines bad(options);
  EventBuilder builder(into);
  Benchmark benchmark;
  std::vector<std::string> notes;
  bool has_benchmark = false;
  // One name like "train.tsv" says little; two names that differ are a split.
  std::set<Split> named;
  for (const auto& file : files) {
    if (file.use == Use::interactions && file.split != Split::none) named.insert(file.split);
  }
  report["files"] = Json::array();
  const int64_t before = into.n_rows();
  for (const auto& file : files) {
    if (file.use != Use::interactions) continue;
    report["files"].push_back(file.json());
    const Split split = named.size() >= 2 ? file.split : Split::none;
    if (split == Split::none && file.split != Split::none) {
      notes.push_back(fmt::format("{}: no other split beside it, so its name labels no rows",
                                  file.path.string()));
    }
    if (file.column("list") >= 0) {
      builder.begin(file.path.string(), {.position = true}, split, 0);
      into.keep_repeats = true;
      benchmark.read(file, split, builder, bad);
      has_benchmark = true;
      notes.push_back(fmt::format("{}: histories in the rows; their order is the position",
                                  file.path.string()));
    } else if (file.kind == "sequence text") {
      read_sequences(file, split, builder, into, bad);
    } else if (file.kind == "JSON user -> items") {
      read_json_split(file, split, builder, bad);
    } else if (file.kind == "Gorse JSONL feedback") {
      read_gorse_feedback(file, builder, bad);
    } else {
      read_table(file, split, builder, bad);
    }
  }
  if (has_benchmark) benchmark.finish(builder, named.size() >= 2 ? Split::train : Split::none);
  if (report["files"].empty()) {
    throw data_error("no interactions among the files given; wanted rows of user and item");
  }
  if (into.n_rows() == before) {
    throw data_error("{}: no rows of user and item in it", files.front().path.string());
  }
  report["rows"] = into.n_rows() - before;
  report["bad_lines"] = bad.count();
  report["blank_lines"] = bad.blank;
  report["bad_line_examples"] = bad.examples();
  report["time_unit"] = into.time_unit;
  report["notes"] = Json::array();
  for (const auto& note : notes) report["notes"].push_back(shown_text(note));
}

}  // namespace tessera

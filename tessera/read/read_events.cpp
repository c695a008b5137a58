#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

/// All of `text` as a number.
template <typename T>
bool parse_number(std::string_view text, T& value) {
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

/// `n` decimal digits at the front of `text`, which loses them; -1 when they are not there.
int take_digits(std::string_view& text, size_t n) {
  if (text.size() < n) return -1;
  int value = 0;
  for (size_t i = 0; i < n; ++i) {
    if (text[i] < '0' || text[i] > '9') return -1;
    value = value * 10 + (text[i] - '0');
  }
  text.remove_prefix(n);
  return value;
}

bool take(std::string_view& text, std::string_view any_of) {
  if (text.empty() || any_of.find(text.front()) == std::string_view::npos) return false;
  text.remove_prefix(1);
  return true;
}

constexpr int64_t kLargestTime = 9'000'000'000'000'000;  // times 1000 it still fits

}  // namespace

void BadLines::add(const std::string& file, int64_t line, int64_t column,
                   const std::string& reason) {
  const std::string message = fmt::format("{}:{}:{}: {}", file, line, column, reason);
  if (++count_ > allowed_) {
    if (allowed_ == 0) throw data_error("{}", message);
    throw data_error("{} (after {} bad lines tolerated by `max_bad_lines`)", message, allowed_);
  }
  if (examples_.size() < 10) examples_.push_back(message);
}

size_t invalid_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t n = text.size();
  for (size_t i = 0; i < n;) {
    const unsigned char c = byte(i);
    if (c < 0x80) {
      ++i;
      continue;
    }
    size_t more = 0;
    unsigned char low = 0x80, high = 0xbf;  // of the second byte: no overlong, no surrogate
    if (c >= 0xc2 && c <= 0xdf) {
      more = 1;
    } else if (c >= 0xe0 && c <= 0xef) {
      more = 2;
      if (c == 0xe0) low = 0xa0;
      if (c == 0xed) high = 0x9f;
    } else if (c >= 0xf0 && c <= 0xf4) {
      more = 3;
      if (c == 0xf0) low = 0x90;
      if (c == 0xf4) high = 0x8f;
    } else {
      return i;
    }
    if (i + more >= n) return i;
    if (byte(i + 1) < low || byte(i + 1) > high) return i;
    for (size_t k = 2; k <= more; ++k) {
      if ((byte(i + k) & 0xc0) != 0x80) return i;
    }
    i += more + 1;
  }
  return std::string_view::npos;
}

std::string id_problem(std::string_view id, std::string_view what) {
  if (id.empty()) return fmt::format("empty {} id; write one, or drop the row", what);
  for (const char c : id) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) continue;
    const std::string_view name = c == '\t'                  ? "a tab"
                                  : (c == '\n' || c == '\r') ? "a line end"
                                                             : "a control character";
    return fmt::format("{} id '{}' contains {}; write it without", what, printable(id), name);
  }
  if (invalid_utf8(id) != std::string_view::npos) {
    return fmt::format("{} id '{}' is not UTF-8; convert the file (iconv -f latin1 -t utf-8)", what,
                       printable(id));
  }
  return {};
}

std::optional<Split> parse_split(std::string_view label) {
  const std::string name = squeezed(label.substr(0, 32));
  if (name == "train" || name == "training" || name == "0") return Split::train;
  if (name == "valid" || name == "val" || name == "validation" || name == "dev" || name == "1") {
    return Split::valid;
  }
  if (name == "test" || name == "testing" || name == "2") return Split::test;
  if (name == "history") return Split::history;
  if (name == "seen") return Split::seen;
  return std::nullopt;
}

std::optional<IsoTime> parse_iso8601(std::string_view text) {
  namespace chr = std::chrono;
  const int year = take_digits(text, 4);
  if (year < 0 || !take(text, "-")) return std::nullopt;
  const int month = take_digits(text, 2);
  if (month < 0 || !take(text, "-")) return std::nullopt;
  const int day = take_digits(text, 2);
  if (day < 0) return std::nullopt;
  const chr::year_month_day date{chr::year(year), chr::month(static_cast<unsigned>(month)),
                                 chr::day(static_cast<unsigned>(day))};
  if (!date.ok()) return std::nullopt;
  const int64_t days = chr::sys_days(date).time_since_epoch().count();
  IsoTime time{days * 86'400'000};
  if (text.empty()) return time;
  if (!take(text, "Tt ")) return std::nullopt;
  const int hour = take_digits(text, 2);
  if (hour < 0 || hour > 24 || !take(text, ":")) return std::nullopt;
  const int minute = take_digits(text, 2);
  if (minute < 0 || minute > 59) return std::nullopt;
  int second = 0;
  int64_t fraction = 0;
  if (take(text, ":")) {
    second = take_digits(text, 2);
    if (second < 0 || second > 60) return std::nullopt;
    if (take(text, ".,")) {
      int64_t unit = 100;
      size_t digits = 0;
      for (; !text.empty() && text.front() >= '0' && text.front() <= '9'; ++digits) {
        fraction += (text.front() - '0') * unit;
        unit /= 10;
        text.remove_prefix(1);
      }
      if (digits == 0) return std::nullopt;
    }
  }
  time.milliseconds += ((hour * 60LL + minute) * 60 + second) * 1000 + fraction;
  take(text, " ");
  if (text.empty() || text == "Z" || text == "z" || text == "UTC") return time;
  const int sign = text.front() == '+' ? 1 : text.front() == '-' ? -1 : 0;
  if (sign == 0) return std::nullopt;
  text.remove_prefix(1);
  const int zone_hour = take_digits(text, 2);
  take(text, ":");
  const int zone_minute = text.empty() ? 0 : take_digits(text, 2);
  if (zone_hour < 0 || zone_hour > 23 || zone_minute < 0 || zone_minute > 59 || !text.empty()) {
    return std::nullopt;
  }
  time.milliseconds -= sign * (zone_hour * 60LL + zone_minute) * 60'000;
  return time;
}

std::string meaning_of(std::string_view name, bool& exact) {
  const std::string word = squeezed(name.substr(0, 64));
  std::string stem = word;
  if (stem.size() > 2 && stem.ends_with("id")) stem.resize(stem.size() - 2);
  exact = true;
  const auto is = [&](std::initializer_list<std::string_view> words) {
    return std::find(words.begin(), words.end(), stem) != words.end();
  };
  if (word.starts_with("itemidlist")) return "list";
  if (is({"user", "reviewer", "customer", "visitor", "member"}) || word == "uid") return "user";
  if (is({"item", "movie", "product", "book", "article", "song", "track", "artist", "business",
          "video", "news", "game", "anime", "recipe", "asin", "parentasin", "sku", "isbn"}) ||
      word == "iid") {
    return "item";
  }
  if (word == "rating" || word == "ratings" || word == "stars") return "rating";
  if (word == "time" || word == "timestamp" || word == "datetime" || word == "timestamps") {
    return "time";
  }
  if (word == "position") return "position";
  if (word == "split" || word == "xlabel") return "split";
  if (word == "event" || word == "eventtype" || word == "feedback" || word == "feedbacktype") {
    return "event";
  }
  exact = false;
  if (word.starts_with("user")) return "user";
  if (word.starts_with("item")) return "item";
  if (word.starts_with("rating")) return "rating";
  if (word.starts_with("time")) return "time";
  return {};
}

void EventBuilder::begin(const std::string& file, Columns columns, Split split,
                         int64_t expected_rows) {
  if (columns.position) columns.time = false;
  if (split != Split::none) columns.split = true;
  const bool has_rows = table_.n_rows() > 0;
  if (!started_ && has_rows) {  // rows of an earlier call
    columns_ = {!table_.rating.empty(), table_.time_unit == "s" || table_.time_unit == "ms",
                table_.time_unit == "position", !table_.split.empty(), !table_.event.empty()};
    first_file_ = "the rows before it";
    started_ = true;
  }
  if (started_ && has_rows) {
    const auto differs = [&](bool before, bool now, std::string_view what) {
      if (before == now) return;
      throw data_error("{} has {} {}, but {} has {}; give both files the same columns", file,
                       now ? "a" : "no", what, first_file_, before ? "one" : "none");
    };
    differs(columns_.position, columns.position, "position column");
    differs(columns_.time, columns.time, "time column");
    differs(columns_.split, columns.split, "split label");
    differs(columns_.event, columns.event, "event column");
    differs(columns_.rating, columns.rating, "rating column");
  } else {
    first_file_ = file;
    started_ = true;
  }
  columns_ = columns;
  split_ = split;
  file_start_ = table_.n_rows();
  is_iso_ = -1;
  fractions_ = false;
  largest_ = std::numeric_limits<int64_t>::min();
  if (columns.split) table_.keep_repeats = true;
  if (columns.position) table_.time_unit = "position";
  if (expected_rows <= 0) return;
  const auto n = static_cast<size_t>(file_start_ + expected_rows);
  table_.user.reserve(n);
  table_.item.reserve(n);
  if (columns.rating) table_.rating.reserve(n);
  if (columns.time || columns.position) table_.time.reserve(n);
  if (columns.event) table_.event.reserve(n);
  if (columns.split) table_.split.reserve(n);
}

int32_t EventBuilder::index(Vocabulary& ids, std::string_view id, std::string_view what,
                            std::string& reason) {
  const int32_t known = ids.find(id);
  if (known >= 0) return known;
  reason = id_problem(id, what);
  if (!reason.empty()) return -1;
  if (ids.size() >= std::numeric_limits<int32_t>::max()) {
    reason = fmt::format("more than {} distinct {} ids; split the data",
                         std::numeric_limits<int32_t>::max(), what);
    return -1;
  }
  return ids.add(id);
}

bool EventBuilder::parse_time(std::string_view text, int64_t& time, std::string& reason) {
  int64_t whole = 0;
  bool fraction = false;
  int64_t milliseconds = 0;
  int iso = 0;
  double number = 0;
  if (parse_number(text, whole)) {
    if (whole > kLargestTime || whole < -kLargestTime) {
      reason = fmt::format("time {} is out of range; write Unix seconds or milliseconds",
                           printable(text));
      return false;
    }
  } else if (parse_number(text, number) && std::isfinite(number) &&
             std::abs(number) < static_cast<double>(kLargestTime)) {
    whole = static_cast<int64_t>(std::floor(number));
    // Milliseconds with a fraction need no finer unit.
    fraction = number != std::floor(number) && number < kMillisecondsFrom;
    if (fraction) milliseconds = std::llround(number * 1000);
  } else if (const auto date = parse_iso8601(text)) {
    iso = 1;
    milliseconds = date->milliseconds;
    fraction = milliseconds % 1000 != 0;
    whole = (milliseconds - (((milliseconds % 1000) + 1000) % 1000)) / 1000;
  } else {
    reason = fmt::format("time '{}' is not one; write Unix seconds, milliseconds or ISO 8601",
                         printable(text));
    return false;
  }
  if (is_iso_ >= 0 && is_iso_ != iso) {
    reason =
        fmt::format("time '{}' is {}, the times before it are {}; write one kind", printable(text),
                    iso ? "ISO 8601" : "a number", is_iso_ ? "ISO 8601" : "numbers");
    return false;
  }
  is_iso_ = iso;
  if (fraction && !fractions_) {
    if (largest_ * 1.0 > kMillisecondsFrom) {
      fraction = false;
    } else {
      fractions_ = true;
      for (size_t i = file_start_; i < table_.time.size(); ++i) table_.time[i] *= 1000;
    }
  }
  if (!iso) largest_ = std::max(largest_, whole);
  time = fractions_ ? (fraction ? milliseconds : whole * 1000) : whole;
  return true;
}

bool EventBuilder::add(const EventRow& row, std::string& field, std::string& reason) {
  float rating = std::numeric_limits<float>::quiet_NaN();
  if (columns_.rating && !row.rating.empty()) {
    if (!parse_number(row.rating, rating) || !std::isfinite(rating)) {
      field = "rating";
      reason = fmt::format("rating '{}' is not a number; write one like 4 or 3.5",
                           printable(row.rating));
      return false;
    }
  }
  int64_t time = 0;
  if (columns_.position) {
    double number = 0;
    if (!parse_number(row.position, time)) {
      if (!parse_number(row.position, number) || number != std::floor(number) ||
          std::abs(number) > 1e15) {
        field = "position";
        reason = fmt::format("position '{}' is not a whole number; write 0, 1, 2, ..",
                             printable(row.position));
        return false;
      }
      time = static_cast<int64_t>(number);
    }
  } else if (columns_.time) {
    if (row.time.empty()) {
      field = "time";
      reason = "no time, which other rows have; write one, or drop the column";
      return false;
    }
    if (!parse_time(row.time, time, reason)) {
      field = "time";
      return false;
    }
  }
  Split split = split_;
  if (columns_.split && split == Split::none) {
    const auto label = parse_split(row.split);
    if (!label) {
      field = "split";
      reason = fmt::format("split label '{}' is unknown; write train, valid or test",
                           printable(row.split));
      return false;
    }
    split = *label;
  }
  size_t event = 0;
  if (columns_.event) {
    auto& types = table_.event_types;
    event = std::find(types.begin(), types.end(), row.event) - types.begin();
    if (event == types.size()) {
      reason = id_problem(row.event, "event type");
      if (reason.empty() && types.size() >= 255) {
        reason = fmt::format(
            "event type '{}' is the 256th; at most 255 are read: is this the "
            "event column? say --event-col",
            printable(row.event));
      }
      if (!reason.empty()) {
        field = "event";
        return false;
      }
    }
  }
  // The item's id is judged before the user's is added, so that a bad row leaves no user behind.
  if (table_.items.find(row.item) < 0) {
    reason = id_problem(row.item, "item");
    if (!reason.empty()) {
      field = "item";
      return false;
    }
  }
  const int32_t user = index(table_.users, row.user, "user", reason);
  if (user < 0) {
    field = "user";
    return false;
  }
  const int32_t item = index(table_.items, row.item, "item", reason);
  if (item < 0) {
    field = "item";
    return false;
  }
  if (columns_.event && event == table_.event_types.size()) {
    table_.event_types.emplace_back(row.event);
  }
  table_.user.push_back(user);
  table_.item.push_back(item);
  if (columns_.rating) table_.rating.push_back(rating);
  if (columns_.time || columns_.position) table_.time.push_back(time);
  if (columns_.event) table_.event.push_back(static_cast<uint8_t>(event));
  if (columns_.split) table_.split.push_back(split);
  return true;
}

void EventBuilder::add_indexed(int32_t user, int32_t item, int64_t position, Split split) {
  table_.user.push_back(user);
  table_.item.push_back(item);
  if (columns_.position) table_.time.push_back(position);
  if (columns_.split) table_.split.push_back(split);
}

int64_t EventBuilder::next_position(int32_t user) {
  if (static_cast<size_t>(user) >= positions_.size()) {
    positions_.resize(std::max<size_t>(user + 1, positions_.size() * 2));
  }
  return positions_[user]++;
}

void EventBuilder::end() {
  if (!columns_.time || table_.n_rows() == file_start_) return;
  const bool milliseconds =
      fractions_ || (is_iso_ == 0 && static_cast<double>(largest_) > kMillisecondsFrom);
  const std::string unit = milliseconds ? "ms" : "s";
  if (!table_.time_unit.empty() && table_.time_unit != unit) {
    const int64_t first = milliseconds ? 0 : file_start_;
    const int64_t last = milliseconds ? file_start_ : table_.n_rows();
    for (int64_t i = first; i < last; ++i) table_.time[i] *= 1000;
    table_.time_unit = "ms";
  } else {
    table_.time_unit = unit;
  }
}

bool VectorColumn::add(int64_t item_row, std::span<const float> values) {
  if (!items_.empty() && static_cast<int64_t>(values.size()) != items_.front().second) {
    fixed_ = false;
  }
  values_.insert(values_.end(), values.begin(), values.end());
  items_.emplace_back(item_row, static_cast<int64_t>(values.size()));
  return fixed_;
}

ItemTable::Vectors VectorColumn::take() {
  ItemTable::Vectors vectors;
  vectors.modality = modality_name(name_);
  vectors.width = items_.empty() ? 0 : items_.front().second;
  vectors.rows = std::move(values_);
  for (const auto& [row, width] : items_) vectors.item_rows.push_back(row);
  return vectors;
}

std::vector<std::pair<int64_t, std::string>> VectorColumn::text() const {
  std::vector<std::pair<int64_t, std::string>> rows;
  const float* value = values_.data();
  for (const auto& [row, width] : items_) {
    std::string text;
    for (int64_t i = 0; i < width; ++i) {
      if (i > 0) text += ' ';
      text += fmt::format("{}", *value++);
    }
    rows.emplace_back(row, std::move(text));
  }
  return rows;
}

std::string modality_name(std::string_view name) {
  std::string out;
  for (const char c : lower(name.substr(0, 64))) {
    out += (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ? c : '_';
  }
  for (const std::string_view tail : {"_features", "_feature", "_feat", "_embedding", "_emb"}) {
    if (out.size() > tail.size() && out.ends_with(tail)) {
      out.resize(out.size() - tail.size());
      break;
    }
  }
  if (out.empty() || out.front() < 'a' || out.front() > 'z') out = "m" + out;
  return out;
}

}  // namespace tessera

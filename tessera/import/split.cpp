#include "tessera/import/split.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>

#include "tessera/base/error.h"
#include "tessera/base/random.h"
#include "tessera/base/text.h"
#include "tessera/data/rows.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

constexpr std::array<std::pair<SplitKind, const char*>, 8> kKinds = {{
    {SplitKind::given, "given"},
    {SplitKind::random, "random"},
    {SplitKind::leave_one_out, "leave-one-out"},
    {SplitKind::temporal_user, "temporal-user"},
    {SplitKind::temporal_global, "temporal-global"},
    {SplitKind::cold_item, "cold-item"},
    {SplitKind::cold_user, "cold-user"},
    {SplitKind::k_fold, "k-fold"},
}};
constexpr std::array<std::pair<Rounding, const char*>, 4> kRoundings = {{
    {Rounding::mmrec, "mmrec"},
    {Rounding::lattice, "lattice"},
    {Rounding::recbole, "recbole"},
    {Rounding::floor, "floor"},
}};

template <typename T, size_t n>
std::string name_of(const std::array<std::pair<T, const char*>, n>& names, T value) {
  for (const auto& [each, name] : names) {
    if (each == value) return name;
  }
  return {};
}

template <typename T, size_t n>
T find_name(const std::array<std::pair<T, const char*>, n>& names, std::string_view typed,
            const char* what) {
  std::vector<std::string> all;
  for (const auto& [value, name] : names) {
    if (squeezed(name) == squeezed(typed)) return value;
    all.emplace_back(name);
  }
  throw usage_error("no {} '{}'{}: there are {}", what, printable(typed), did_you_mean(typed, all),
                    fmt::join(all, ", "));
}

std::optional<double> number(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !std::isfinite(value)) return std::nullopt;
  return value;
}

/// Unix seconds of an ISO 8601 date or time (UTC without a zone), or of a whole number.
bool date_seconds(const std::string& text, int64_t& seconds) {
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error == std::errc() && stop == text.data() + text.size()) return true;
  const auto time = parse_iso8601(text);
  if (!time) return false;
  seconds = time->milliseconds / 1000;
  return true;
}

std::array<double, 3> parse_ratios(const std::string& text) {
  const auto parts = split_cells(text, ',');
  std::array<double, 3> ratios = {0, 0, 0};
  bool good = parts.size() == 2 || parts.size() == 3;
  for (size_t i = 0; good && i < parts.size(); ++i) {
    const auto value = number(parts[i]);
    good = value && *value >= 0 && *value <= 1;
    // Two ratios are train and test.
    if (good) ratios[i == 1 && parts.size() == 2 ? 2 : i] = *value;
  }
  if (!good || ratios[0] <= 0 || std::abs(ratios[0] + ratios[1] + ratios[2] - 1) > 1e-6) {
    throw usage_error(
        "split ratios '{}': wanted train,valid,test (or train,test) that add up to "
        "1, such as .8,.1,.1",
        printable(text));
  }
  return ratios;
}

int64_t parse_count(const std::string& text, const char* what, int64_t low, int64_t high) {
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || value < low || value > high) {
    throw usage_error("{} '{}': wanted a whole number from {} to {}", what, printable(text), low,
                      high);
  }
  return value;
}

bool uses_sizes(SplitKind kind) {
  return kind == SplitKind::random || kind == SplitKind::temporal_user;
}

/// floor(ratio n) for a ratio meant as a decimal: .29 * 100 is 29, though the product of the
/// doubles lies below.
int64_t share(double ratio, int64_t n) {
  return static_cast<int64_t>(std::floor(ratio * static_cast<double>(n) + 1e-9));
}

/// Value at a quantile of sorted times, linear between neighbours.
double quantile(const std::vector<int64_t>& sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(place);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  // Differences of times are exact in a double where the times themselves might not be.
  return static_cast<double>(sorted[low]) +
         (place - static_cast<double>(low)) * static_cast<double>(sorted[high] - sorted[low]);
}

void need_order(const EventTable& table, const SplitSpec& spec) {
  if (!table.time.empty() || table.n_rows() == 0) return;
  throw data_error(
      "split {} needs the order of a user's rows: the interactions have neither times "
      "nor positions; name the column with `time_col`, or choose `split` random",
      spec.name());
}

/// The rows of one user but the read events.
void own_rows(const EventTable& table, std::span<const int32_t> rows, std::vector<int32_t>& own) {
  own.clear();
  for (const int32_t row : rows) {
    if (table.split[row] != Split::seen) own.push_back(row);
  }
}

void label_in_order(EventTable& table, const std::vector<int32_t>& rows,
                    const std::array<int64_t, 3>& sizes) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto place = static_cast<int64_t>(i);
    table.split[rows[i]] = place < sizes[0]              ? Split::train
                           : place < sizes[0] + sizes[1] ? Split::valid
                                                         : Split::test;
  }
}

void split_global(EventTable& table, const SplitSpec& spec, Json& drawn) {
  if (table.time_unit != "s" && table.time_unit != "ms") {
    throw data_error(
        "split temporal-global needs times: the interactions have {}; choose "
        "leave-one-out or temporal-user, or name the column with `time_col`",
        table.time_unit == "position" ? "an order only" : "none");
  }
  double first = 0, second = 0;
  if (spec.has_cuts) {
    const int64_t unit = table.time_unit == "ms" ? 1000 : 1;
    first = static_cast<double>(spec.cuts[0]) * static_cast<double>(unit);
    second = static_cast<double>(spec.cuts[1]) * static_cast<double>(unit);
  } else {
    std::vector<int64_t> times;
    times.reserve(table.time.size());
    for (int64_t row = 0; row < table.n_rows(); ++row) {
      if (table.split[row] != Split::seen) times.push_back(table.time[row]);
    }
    if (times.empty()) return;
    std::sort(times.begin(), times.end());
    first = quantile(times, spec.ratios[0]);
    second = quantile(times, std::min(1.0, spec.ratios[0] + spec.ratios[1]));
  }
  drawn["cut_times"] = {first, second};
  for (int64_t row = 0; row < table.n_rows(); ++row) {
    if (table.split[row] == Split::seen) continue;
    const auto time = static_cast<double>(table.time[row]);
    table.split[row] = time < first ? Split::train : time < second ? Split::valid : Split::test;
  }
}

/// Labels of floor(0.2 n) drawn entities: the first half (floor) test, the others valid, the rest
/// train.
std::vector<Split> draw_cold(int64_t n, const SplitSpec& spec, const char* what, Json& drawn) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  Random(spec.seed, "split").shuffle(order, 0);
  const int64_t n_cold = n / 5;
  std::vector<Split> label(n, Split::train);
  for (int64_t i = 0; i < n_cold; ++i) {
    label[order[i]] = i < n_cold / 2 ? Split::test : Split::valid;
  }
  drawn[fmt::format("n_test_{}", what)] = n_cold / 2;
  drawn[fmt::format("n_valid_{}", what)] = n_cold - n_cold / 2;
  return label;
}

void check_given(const EventTable& table) {
  int64_t without = 0;
  for (const Split split : table.split) without += split == Split::none;
  if (table.split.empty() || (without == table.n_rows() && without > 0)) {
    throw data_error(
        "split given: the interactions have no split labels; name the column with "
        "`split_col`, or choose another split");
  }
  if (without > 0) {
    throw data_error(
        "split given: {} of {} rows have no split label; label all of them, or choose "
        "another split",
        without, table.n_rows());
  }
}

}  // namespace

std::string SplitSpec::name() const { return name_of(kKinds, kind); }

Json SplitSpec::json() const {
  Json out = {{"kind", name()}};
  if (has_cuts) {
    out["cuts"] = cuts;
  } else if (kind == SplitKind::temporal_global) {
    out["ratios"] = ratios;
  }
  if (uses_sizes(kind)) {
    if (rounding == Rounding::recbole) out["ratios"] = ratios;
    if (rounding == Rounding::floor) out["test_ratio"] = ratios[2];
    out["rounding"] = name_of(kRoundings, rounding);
  }
  if (kind == SplitKind::k_fold) out["folds"] = folds;
  if (kind == SplitKind::cold_user) {
    out["history"] = history < 0 ? Json("half, rounded up") : Json(history);
  }
  if (kind == SplitKind::random || kind == SplitKind::cold_item || kind == SplitKind::cold_user ||
      kind == SplitKind::k_fold) {
    out["seed"] = seed;
  }
  return out;
}

SplitSpec parse_split(std::string_view text, std::string_view rounding, uint64_t seed) {
  SplitSpec spec;
  spec.seed = seed;
  const size_t colon = text.find(':');
  spec.kind = find_name(kKinds, text.substr(0, colon), "split");
  const bool has_argument = colon != std::string_view::npos;
  const std::string argument(has_argument ? text.substr(colon + 1) : "");
  bool has_ratios = false;
  if (has_argument) {
    switch (spec.kind) {
      case SplitKind::random:
      case SplitKind::temporal_user:
        spec.ratios = parse_ratios(argument);
        has_ratios = true;
        break;
      case SplitKind::temporal_global: {
        const auto parts = split_cells(argument, ',');
        int64_t from = 0, to = 0;
        const bool times =
            parts.size() == 2 && date_seconds(parts[0], from) && date_seconds(parts[1], to);
        // Whole numbers up to 1 are ratios, not the first second of 1970.
        const bool dated = argument.find('-') != std::string::npos;
        if (times && (dated || (from > 1 && to > 1))) {
          if (from > to || to > int64_t{1} << 40) {
            throw usage_error("split dates '{}': wanted the earlier first", printable(argument));
          }
          spec.cuts = {from, to};
          spec.has_cuts = true;
        } else if (dated) {
          throw usage_error("split dates '{}': wanted two dates such as 2020-01-01,2020-07-01",
                            printable(argument));
        } else {
          spec.ratios = parse_ratios(argument);
        }
        break;
      }
      case SplitKind::k_fold:
        spec.folds = parse_count(argument, "number of folds", 2, 255);
        break;
      case SplitKind::cold_user:
        spec.history = parse_count(argument, "history rows of cold-user", 0, 1000000);
        break;
      default:
        throw usage_error("split {} takes nothing after a colon, found '{}'", spec.name(),
                          printable(argument));
    }
  }
  spec.rounding = has_ratios ? Rounding::recbole : Rounding::mmrec;
  if (rounding.empty()) return spec;
  spec.rounding = find_name(kRoundings, rounding, "rounding");
  if (!uses_sizes(spec.kind)) {
    throw usage_error("`rounding` {} belongs to the splits random and temporal-user, not to {}",
                      printable(rounding), spec.name());
  }
  if (spec.rounding == Rounding::floor && !has_ratios) spec.ratios = {.8, 0, .2};
  if (has_ratios && (spec.rounding == Rounding::mmrec || spec.rounding == Rounding::lattice) &&
      (std::abs(spec.ratios[0] - .8) > 1e-9 || std::abs(spec.ratios[1] - .1) > 1e-9)) {
    throw usage_error(
        "`rounding` {} is 8:1:1 by its own rule: leave the ratios out, or choose "
        "recbole or floor",
        printable(rounding));
  }
  return spec;
}

std::array<int64_t, 3> held_out_sizes(int64_t n, Rounding rounding,
                                      const std::array<double, 3>& ratios) {
  switch (rounding) {
    case Rounding::mmrec:
    case Rounding::lattice: {
      if (n < 3) return {n, 0, 0};
      if (n < 10) return {n - 2, 1, 1};
      const int64_t held = n / 5;
      const int64_t half = held / 2;
      if (rounding == Rounding::mmrec) return {n - held, half, held - half};
      return {n - held, held - half, half};
    }
    case Rounding::recbole: {
      int64_t valid = share(ratios[1], n), test = share(ratios[2], n);
      int64_t train = n - valid - test;
      const auto fraction = [&](double ratio) {
        const double rows = ratio * static_cast<double>(n);
        return rows > 0 && rows < 1 - 1e-9;
      };
      if (train > 1 && fraction(ratios[2])) {
        --train;
        ++test;
      }
      if (train > 1 && fraction(ratios[1])) {
        --train;
        ++valid;
      }
      return {train, valid, test};
    }
    case Rounding::floor:
      break;
  }
  const int64_t test = share(ratios[2], n);
  return {n - test, 0, test};
}

SplitResult assign_split(EventTable& table, const SplitSpec& spec) {
  SplitResult result;
  if (spec.kind == SplitKind::given) {
    check_given(table);
    return result;
  }
  if (table.split.empty()) table.split.assign(table.n_rows(), Split::none);
  if (spec.kind == SplitKind::temporal_global) {
    split_global(table, spec, result.drawn);
    return result;
  }
  if (spec.kind == SplitKind::leave_one_out || spec.kind == SplitKind::temporal_user) {
    need_order(table, spec);
  }
  const int64_t n_users = table.users.size();
  if (spec.kind == SplitKind::cold_item) {
    const auto label = draw_cold(table.items.size(), spec, "items", result.drawn);
    for (int64_t row = 0; row < table.n_rows(); ++row) {
      if (table.split[row] != Split::seen) table.split[row] = label[table.item[row]];
    }
    return result;
  }
  std::vector<Split> cold;
  if (spec.kind == SplitKind::cold_user) cold = draw_cold(n_users, spec, "users", result.drawn);
  if (spec.kind == SplitKind::k_fold) result.fold.assign(table.n_rows(), 0);
  const Random random(spec.seed, "split");
  const RowsByUser by_user = rows_by_user(n_users, table.user, table.time);
  std::vector<int32_t> rows;
  for (int64_t user = 0; user < n_users; ++user) {
    own_rows(table, by_user.of(user), rows);
    const auto n = static_cast<int64_t>(rows.size());
    switch (spec.kind) {
      case SplitKind::random:
        random.shuffle(rows, 0, user);
        label_in_order(table, rows, held_out_sizes(n, spec.rounding, spec.ratios));
        break;
      case SplitKind::temporal_user:
        label_in_order(table, rows, held_out_sizes(n, spec.rounding, spec.ratios));
        break;
      case SplitKind::leave_one_out:
        label_in_order(table, rows,
                       n < 2 ? std::array<int64_t, 3>{n, 0, 0}
                             : std::array<int64_t, 3>{std::max<int64_t>(1, n - 2), n > 2, 1});
        break;
      case SplitKind::cold_user: {
        const int64_t given = spec.history < 0 ? (n + 1) / 2 : spec.history;
        for (int64_t i = 0; i < n; ++i) {
          table.split[rows[i]] =
              cold[user] != Split::train && i < given ? Split::history : cold[user];
        }
        break;
      }
      case SplitKind::k_fold:
        random.shuffle(rows, 0, user);
        for (int64_t i = 0; i < n; ++i) {
          table.split[rows[i]] = Split::train;
          result.fold[rows[i]] = static_cast<uint8_t>((user + i) % spec.folds);
        }
        break;
      default:
        break;
    }
  }
  return result;
}

}  // namespace tessera

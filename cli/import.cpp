#include "tessera/import/import.h"

#include <fmt/ranges.h>

#include <charconv>
#include <memory>

#include "cli/cli.h"

namespace tessera::cli {
namespace {

/// Values of a flag that may be given again, each of them a list.
std::vector<std::string> all_of(const std::vector<std::string>& values) {
  return split_list(fmt::format("{}", fmt::join(values, ",")));
}

template <typename T>
T whole_number(const std::string& flag, const std::string& text) {
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw usage_error("{} '{}': wanted a whole number", flag, printable(text));
  }
  return value;
}

std::string counts_line(const Json& counts) {
  return fmt::format("{} users, {} items, {} interactions", counts["users"].get<int64_t>(),
                     counts["items"].get<int64_t>(), counts["interactions"].get<int64_t>());
}

std::string text_of(const Json& result) {
  std::string out;
  const auto line = [&](const std::string& text) { out += text + "\n"; };
  for (const Json& note : result["notes"]) line(note.get<std::string>());
  for (const Json& step : result["filters"]) {
    std::string name = step["name"].get<std::string>();
    if (name == "repeats") {
      name = fmt::format("repeats: {} found, {}", step["repeats"].get<int64_t>(),
                         step["value"] == "kept" ? "kept" : "the earliest kept");
    } else {
      name += " " + step["value"].dump();
    }
    line(
        fmt::format("{}: {} -> {}", name, counts_line(step["before"]), counts_line(step["after"])));
  }
  const Json& counts = result["counts"];
  const auto count = [&](const char* key) { return counts[key].get<int64_t>(); };
  line(fmt::format("users         {}", count("n_users")));
  line(fmt::format("items         {}", count("n_items")));
  line(fmt::format("interactions  {}", count("n_interactions")));
  line(fmt::format("sparsity      {:.4f} %", 100 * counts["sparsity"].get<double>()));
  line(fmt::format("split         {}", result["split"].dump()));
  std::string parts = fmt::format("train {}, valid {}, test {}", count("n_train"), count("n_valid"),
                                  count("n_test"));
  if (count("n_history") > 0) parts += fmt::format(", history {}", count("n_history"));
  if (count("n_seen") > 0) parts += fmt::format(", seen only {}", count("n_seen"));
  line(fmt::format("rows          {}", parts));
  line(
      fmt::format("not in train  {} users and {} items held out only, {} users and {} items "
                  "without rows",
                  count("users_only_held_out"), count("items_only_held_out"),
                  count("users_without_rows"), count("items_without_rows")));
  for (const auto& [name, feature] : result["features"].items()) {
    line(fmt::format("feature       {}: {} x {}, {} items matched, {} without{}", name,
                     feature["rows"].get<int64_t>(), feature["width"].get<int64_t>(),
                     feature["matched"].get<int64_t>(), feature["missing"].get<int64_t>(),
                     feature.value("unknown", int64_t{0}) > 0
                         ? fmt::format(", {} rows of no item", feature["unknown"].get<int64_t>())
                         : ""));
  }
  for (const auto& [reason, n] : result["drops"].items()) {
    line(fmt::format("left out      {} {}", n.dump(), reason));
  }
  line(fmt::format("folder        {}", result["folder"].get<std::string>()));
  return out;
}

struct Flags {
  std::vector<std::string> paths, positive, read, text;
  std::string core, min_rating;
  ImportOptions options;
};

void run_import(Flags& flags, const Common& common) {
  ImportOptions& options = flags.options;
  options.paths.assign(flags.paths.begin(), flags.paths.end());
  if (options.paths.empty()) {
    options.paths.assign(common.datasets.begin(), common.datasets.end());
  }
  options.output = common.output;
  options.reading.stop_requested = interrupted;
  options.positive = all_of(flags.positive);
  options.read = all_of(flags.read);
  options.reading.text = all_of(flags.text);
  options.seed = whole_number<uint64_t>("--seed", common.flag("seed", "999"));
  if (!flags.min_rating.empty()) {
    double rating = 0;
    const char* end = flags.min_rating.data() + flags.min_rating.size();
    const auto [stop, error] = std::from_chars(flags.min_rating.data(), end, rating);
    if (error != std::errc() || stop != end) {
      throw usage_error("--min-rating '{}': wanted a number", printable(flags.min_rating));
    }
    options.min_rating = rating;
  }
  const auto core = split_list(flags.core);
  if (core.size() > 2) {
    throw usage_error("--core '{}': wanted one number, or one of users and one of items",
                      printable(flags.core));
  }
  if (!core.empty()) {
    options.core_users = whole_number<int64_t>("--core", core.front());
    options.core_items = whole_number<int64_t>("--core", core.back());
  }
  Json inspected = Json::array();
  for (const auto& path : options.paths) {
    inspected.push_back(inspect(path, options.reading));
    if (!common.json) print(inspect_text(inspected.back()));
  }
  Json result = import_dataset(options, make_log(common));
  if (!common.json) {
    print(text_of(result));
    return;
  }
  Json document = {{"inspect", inspected}};
  document.update(result);
  print_json(document);
}

}  // namespace

void add_import(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, common, "import",
                            "raw files to a dataset folder; of a dataset folder, another split",
                            false, [flags, &common] { run_import(*flags, common); });
  ImportOptions& options = flags->options;
  verb->add_option("paths", flags->paths, "files and folders, or one dataset folder");
  const auto one = [&](const char* name, auto& value, const char* help) {
    verb->add_option(name, value, help);
  };
  const auto list = [&](const char* name, std::vector<std::string>& value, const char* help) {
    verb->add_option(name, value, help)->allow_extra_args(false);
  };
  one("--user-col", options.reading.user_col, "user column, name or number from 1");
  one("--item-col", options.reading.item_col, "item column");
  one("--rating-col", options.reading.rating_col, "rating column");
  one("--time-col", options.reading.time_col, "time column");
  one("--split-col", options.reading.split_col, "column of split labels");
  one("--event-col", options.reading.event_col, "column of event types");
  one("--delimiter", options.reading.delimiter, "tab, comma, semicolon, pipe, space or ::");
  one("--max-bad-lines", options.reading.max_bad_lines, "bad lines left out and counted");
  one("--min-rating", flags->min_rating, "keep ratings from this on");
  one("--core", flags->core, "users and items with fewer partners leave, until stable");
  verb->add_flag("--keep-repeats", options.keep_repeats, "keep all rows of a user and item");
  one("--split", options.split,
      "given, random[:.8,.1,.1], leave-one-out, temporal-user[:ratios], "
      "temporal-global[:ratios or two dates], cold-item, cold-user[:history], k-fold:5");
  one("--rounding", options.rounding, "mmrec, lattice, recbole or floor");
  one("--ids", options.ids, "dense: id = index, gaps included; sparse");
  list("--positive", flags->positive, "event types that train, a,b");
  list("--read", flags->read, "event types that only count as seen, a,b");
  list("--feature", options.features, "image=FILE[,IDS] (repeatable)");
  verb->add_flag("--no-features", options.no_features, "take no files that lie beside");
  one("--items", options.items, "catalogue: JSONL, TSV or CSV");
  one("--item-id", options.reading.item_id_col, "id column of the catalogue");
  list("--text", flags->text, "text columns of the catalogue, a,b");
  one("--images", options.reading.images, "folder of <item id>.jpg, .jpeg or .png");
}

}  // namespace tessera::cli

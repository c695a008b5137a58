#include <memory>
#include <optional>

#include "cli/cli.h"
#include "tessera/serve/recommender.h"

namespace tessera::cli {
namespace {

struct Flags {
  std::string bundle, by = "cf", listed, items_file, exclude, only;
  std::vector<std::string> items;
  std::optional<int64_t> n;
};

void add_tsv(const Recommender& recommender, const std::vector<std::string>* titles,
             const Neighbours& found, std::string& out) {
  const auto of = recommender.item_id(found.item);
  for (size_t r = 0; r < found.items.size(); ++r) {
    const auto& [other, score] = found.items[r];
    fmt::format_to(std::back_inserter(out), "{}\t{}\t{}\t{}", of, recommender.item_id(other), r + 1,
                   static_cast<float>(score));
    if (titles != nullptr) {
      out += '\t';
      out += (*titles)[other];
    }
    out += '\n';
  }
}

Json as_json(const Recommender& recommender, const Neighbours& found) {
  Json list = {{"item", recommender.item_id(found.item)}, {"items", Json::array()}};
  for (size_t r = 0; r < found.items.size(); ++r) {
    const auto& [other, score] = found.items[r];
    Json row = {{"id", recommender.item_id(other)}, {"score", score}, {"rank", r + 1}};
    if (const auto title = recommender.title(other); !title.empty()) row["title"] = title;
    list["items"].push_back(std::move(row));
  }
  return list;
}

void similar(const Common& common, const Flags& flags) {
  check_bundle_flags(common, "similar");
  const Log log = make_log(common);
  AskSimilar ask;
  ask.all_items = flags.listed == "all";
  ask.items = flags.items;
  if (!ask.all_items) {
    for (auto& id : split_list(flags.listed)) ask.items.push_back(std::move(id));
  }
  if (!flags.items_file.empty()) {
    for (auto& id : read_ids(flags.items_file)) ask.items.push_back(std::move(id));
  }
  if (ask.all_items && !ask.items.empty()) {
    throw usage_error("--items all and single items: choose one");
  }
  if (ask.items.empty() && !ask.all_items) {
    throw usage_error("no item given: tessera similar BUNDLE ITEM..., or --items all");
  }
  ask.by = flags.by;
  if (!flags.exclude.empty()) ask.exclude = read_ids(flags.exclude, true);
  if (!flags.only.empty()) ask.only = read_ids(flags.only);
  check_output(common, log);
  Recommender recommender(load_bundle(flags.bundle, log, BundleUse::answers), log);
  ask.n = list_length(flags.n, recommender.bundle().data->n_items);
  const auto* titles = recommender.bundle().data->item_columns.find("title");
  int64_t n_lists = 0, left_out = 0;
  const Progress progress =
      progress_bar(common)("items", ask.all_items ? recommender.bundle().data->n_items
                                                  : static_cast<int64_t>(ask.items.size()));
  print_or_write(common, [&](const Sink& sink) {
    std::string text;
    if (common.json) {
      text = fmt::format("{{\n  \"model\": {},\n  \"by\": {},\n  \"answers\": [",
                         recommender.bundle().about["model"].dump(), Json(flags.by).dump());
    } else {
      text = titles ? "item\tneighbour\trank\tscore\ttitle\n" : "item\tneighbour\trank\tscore\n";
    }
    left_out = recommender.similar(ask, [&](Neighbours&& found) {
      if (common.json) {
        text += n_lists == 0 ? "\n    " : ",\n    ";
        text += as_json(recommender, found).dump(-1, ' ', false, Json::error_handler_t::replace);
      } else {
        add_tsv(recommender, titles, found, text);
      }
      ++n_lists;
      progress.advance(1);
      sink(text);
      text.clear();
    });
    if (common.json) text += "\n  ]\n}\n";
    sink(text);
  });
  if (left_out > 0) {
    log.warn("{} items have nothing to compare by '{}' and get no list", left_out, flags.by);
  }
}

}  // namespace

void add_similar(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, common, "similar", "neighbours of items", false,
                            [&common, flags] { similar(common, *flags); });
  verb->add_option("bundle", flags->bundle, "bundle folder, or a run that has one")->required();
  verb->add_option("ids", flags->items, "item ids");
  verb->add_option("--items", flags->listed, "item ids, a,b; all: every item that is not hidden");
  verb->add_option("--items-file", flags->items_file, "file of item ids, one a line");
  verb->add_option("--by", flags->by, "cf (collaborative), or a modality: image, text, ..");
  verb->add_option("-n", flags->n, "neighbours of an item, 10");
  verb->add_option("--exclude", flags->exclude, "file of item ids that are not wanted");
  verb->add_option("--only", flags->only, "file of item ids: no others are answered (in stock)");
}

}  // namespace tessera::cli

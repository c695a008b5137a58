#include <memory>
#include <optional>

#include "cli/cli.h"
#include "tessera/folder/manifest.h"
#include "tessera/ops/device.h"
#include "tessera/serve/recommender.h"

namespace tessera::cli {
namespace {

struct Flags {
  std::string bundle, by = "cf", listed, items_file, exclude, only;
  std::vector<std::string> items;
  std::optional<int64_t> n;
};

void add_tsv(const Catalogue& catalogue, bool titles, const Neighbours& found, std::string& out) {
  const auto of = catalogue.id(found.item);
  for (size_t r = 0; r < found.items.size(); ++r) {
    const auto& [other, score] = found.items[r];
    fmt::format_to(std::back_inserter(out), "{}\t{}\t{}\t{}", of, catalogue.id(other), r + 1,
                   static_cast<float>(score));
    if (titles) {
      out += '\t';
      out += catalogue.title(other);
    }
    out += '\n';
  }
}

Json as_json(const Catalogue& catalogue, const Neighbours& found) {
  Json list = {{"item", catalogue.id(found.item)}, {"items", Json::array()}};
  for (size_t r = 0; r < found.items.size(); ++r) {
    const auto& [other, score] = found.items[r];
    Json row = {{"id", catalogue.id(other)}, {"score", score}, {"rank", r + 1}};
    if (const auto title = catalogue.title(other); !title.empty()) row["title"] = title;
    list["items"].push_back(std::move(row));
  }
  return list;
}

void similar(const Common& common, const Flags& flags) {
  const ReferenceOps plain(check_bundle_flags(common, "similar").reference());
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
  const std::string modality = squeezed(ask.by) == "cf" ? "" : canonical_modality(ask.by);
  const Recommender recommender(
      load_bundle(flags.bundle, log, {.answers = true, .compare_by = {modality}}), log);
  ask.n = list_length(flags.n, recommender.version()->catalogue->size());
  const auto version = recommender.version();
  const Catalogue& catalogue = *version->catalogue;
  const bool titles = catalogue.has_titles();
  int64_t n_lists = 0, left_out = 0;
  const Progress progress =
      progress_bar(common)("items", ask.all_items ? recommender.version()->catalogue->size()
                                                  : static_cast<int64_t>(ask.items.size()));
  print_or_write(common, [&](const Sink& sink) {
    std::string text;
    if (common.json) {
      text = fmt::format("{{\n  \"model\": {},\n  \"by\": {},\n  \"answers\": [",
                         Json(version->model).dump(), Json(flags.by).dump());
    } else {
      text = titles ? "item\tneighbour\trank\tscore\ttitle\n" : "item\tneighbour\trank\tscore\n";
    }
    left_out = recommender.similar(ask, [&](Neighbours&& found) {
      if (common.json) {
        text += n_lists == 0 ? "\n    " : ",\n    ";
        text += as_json(catalogue, found).dump(-1, ' ', false, Json::error_handler_t::replace);
      } else {
        add_tsv(catalogue, titles, found, text);
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

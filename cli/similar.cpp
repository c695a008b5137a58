#include <memory>

#include "cli/cli.h"
#include "tessera/base/files.h"
#include "tessera/serve/recommender.h"

namespace tessera::cli {
namespace {

struct Flags {
  std::string bundle, by = "cf";
  std::vector<std::string> items;
  int64_t n = 10;
};

void similar(const Common& common, const Flags& flags) {
  if (!common.flag("topk").empty()) throw usage_error("similar has no --topk: here it is -n");
  const Log log = make_log(common);
  if (flags.items.empty()) {
    throw usage_error("no item given: tessera similar BUNDLE ITEM...");
  }
  Recommender recommender(load_bundle(flags.bundle, log), log);
  const bool titles = recommender.bundle().data->item_columns.find("title") != nullptr;
  std::string tsv =
      titles ? "item\tneighbour\trank\tscore\ttitle\n" : "item\tneighbour\trank\tscore\n";
  Json json = {
      {"model", recommender.bundle().about["model"]}, {"by", flags.by}, {"answers", Json::array()}};
  for (const auto& item : flags.items) {
    const auto neighbours = recommender.similar(item, flags.n, flags.by);
    Json list = {{"item", item}, {"items", Json::array()}};
    for (size_t r = 0; r < neighbours.size(); ++r) {
      const auto& [other, score] = neighbours[r];
      const std::string title = recommender.title(other);
      tsv += fmt::format("{}\t{}\t{}\t{}", item, recommender.item_id(other), r + 1,
                         static_cast<float>(score));
      if (titles) tsv += "\t" + title;
      tsv += '\n';
      Json row = {{"id", recommender.item_id(other)}, {"score", score}, {"rank", r + 1}};
      if (!title.empty()) row["title"] = title;
      list["items"].push_back(std::move(row));
    }
    json["answers"].push_back(std::move(list));
  }
  const std::string text =
      common.json ? json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n" : tsv;
  if (common.output.empty()) {
    print(text);
  } else {
    write_file(common.output, text);
    print(common.output);
  }
}

}  // namespace

void add_similar(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, common, "similar", "neighbours of an item", false,
                            [&common, flags] { similar(common, *flags); });
  verb->add_option("bundle", flags->bundle, "bundle folder, or a run that has one")->required();
  verb->add_option("items", flags->items, "item ids");
  verb->add_option("--by", flags->by, "cf (collaborative), or a modality: image, text, ..");
  verb->add_option("-n", flags->n, "neighbours of an item, 10");
}

}  // namespace tessera::cli

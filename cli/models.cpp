#include <algorithm>
#include <memory>

#include "cli/cli.h"
#include "tessera/model/description.h"

namespace tessera::cli {
namespace {

std::string aligned(const TextTable& table) {
  std::vector<size_t> widths(table[0].size(), 0);
  for (const auto& row : table) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string out;
  for (const auto& row : table) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) line += fmt::format("{:<{}}  ", row[c], widths[c]);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string shown(const ModelDescription& model) {
  std::string out = fmt::format("{}: {}\n\n", model.name, model.title);
  out +=
      model.settings.empty() ? "no settings of its own\n" : aligned(settings_table(model.settings));
  out += "\ntraining\n" + aligned(settings_table(model.training));
  if (!model.ablations.empty()) out += "\n" + aligned(ablations_table(model.ablations));
  if (!model.search.empty()) out += "\n" + aligned(search_table(model.search));
  return out;
}

void show(const Common& common, const std::string& name, bool as_markdown) {
  if (as_markdown) {
    if (!name.empty()) throw usage_error("--markdown prints all models, leave out '{}'", name);
    print(models_page());
    return;
  }
  if (!name.empty()) {
    const ModelDescription model = describe(find_model(name));
    common.json ? print_json(model.json(true)) : print(shown(model));
    return;
  }
  std::vector<ModelDescription> all;
  Json list = Json::array();
  for (const auto& info : models()) {
    all.push_back(describe(info));
    list.push_back(all.back().json(false));
  }
  common.json ? print_json(list) : print(aligned(models_table(all)));
}

}  // namespace

void add_models(CLI::App& app, Common& common) {
  struct Flags {
    std::string name;
    bool markdown = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb =
      add_verb(app, common, "models", "models and their settings", false, [&common, flags] {
        show(common, flags->name.empty() ? common.model : flags->name, flags->markdown);
      });
  verb->add_option("name", flags->name, "a model: all of its settings");
  verb->add_flag("--markdown", flags->markdown, "docs/models.md");
}

}  // namespace tessera::cli

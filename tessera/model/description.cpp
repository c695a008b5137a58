#include "tessera/model/description.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace tessera {
namespace {

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string markdown(const TextTable& table) {
  std::string out;
  for (size_t r = 0; r < table.size(); ++r) {
    for (const auto& cell : table[r]) {
      out += "| ";
      for (const char c : cell) out += c == '|' ? std::string("\\|") : std::string(1, c);
      out += ' ';
    }
    out += "|\n";
    if (r == 0) {
      for (size_t c = 0; c < table[0].size(); ++c) out += "|---";
      out += "|\n";
    }
  }
  return out;
}

/// From an instance on a tiny dataset.
Abilities abilities_of(const ModelInfo& info) {
  std::vector<Feature> features(2);
  for (size_t m = 0; m < 2; ++m) {
    features[m].name = m == 0 ? "image" : "text";
    features[m].rows = MappedArray(torch::eye(3));
    features[m].row_of_item = torch::arange(3, torch::kInt32);
  }
  const std::vector<int32_t> users = {0, 0, 1, 1}, items = {0, 1, 1, 2};
  const Dataset data =
      make_dataset(2, 3, make_interactions(2, users, items), {}, {}, std::move(features));
  const RunSettings settings = resolve_settings(info, {});
  const Context context{data.view(), Random(1), settings.train_settings, {}};
  return info.make({}, context)->abilities();
}

std::vector<std::string> alias_names(const ModelInfo& info) {
  std::vector<std::string> out;
  for (const auto& [alias, settings] : info.aliases) {
    std::string text = alias;
    for (const auto& setting : settings) {
      text += fmt::format(" ({} = {})", setting.name, text_of(setting.value));
    }
    out.push_back(std::move(text));
  }
  return out;
}

std::vector<Fields::Row> training_rows() {
  TrainSettings train;
  Fields fields("training");
  train.describe(fields);
  return fields.rows();
}

Json settings_json(const std::vector<Fields::Row>& rows) {
  Json out = Json::array();
  for (const auto& row : rows) {
    out.push_back({{"name", row.name},
                   {"type", row.type},
                   {"default", row.value},
                   {"check", row.check},
                   {"meaning", row.help}});
  }
  return out;
}

}  // namespace

ModelDescription describe(const ModelInfo& info) {
  const auto own = info.fields();
  ModelDescription out{info.name,   info.title,      alias_names(info),      abilities_of(info),
                       own->rows(), training_rows(), own->global_defaults(), {},
                       info.search};
  for (const auto& [name, value] : out.own_defaults) {
    for (auto& row : out.training) {
      if (row.name == name) row.value = text_of(value);
    }
  }
  if (info.ablations) out.ablations = info.ablations({"image", "text"});
  return out;
}

Json ModelDescription::json(bool with_settings) const {
  Json out = {{"name", name}, {"title", title}, {"aliases", aliases}};
  Abilities can = abilities;
  for (const auto& [word, flag] : flags_of(can)) out[word] = *flag;
  if (!with_settings) return out;
  out["settings"] = settings_json(settings);
  out["training"] = settings_json(training);
  out["ablations"] = Json::array();
  for (const auto& ablation : ablations) {
    Json set = Json::object();
    for (const auto& [word, value] : ablation.settings) set[word] = value;
    out["ablations"].push_back({{"label", ablation.label}, {"settings", set}});
  }
  out["search"] = Json::object();
  for (const auto& [word, values] : search) out["search"][word] = values;
  return out;
}

TextTable models_table(const std::vector<ModelDescription>& models) {
  TextTable table = {{"model", "learns from features", "features when ranking", "ranks cold items",
                      "takes histories", "title"}};
  const auto word = [](bool yes) { return yes ? "yes" : "no"; };
  for (const auto& one : models) {
    const Abilities& can = one.abilities;
    table.push_back({one.name, word(can.uses_features), word(can.score_reads_features),
                     word(can.ranks_cold_items), word(can.takes_histories), one.title});
  }
  return table;
}

TextTable settings_table(const std::vector<Fields::Row>& rows) {
  TextTable table = {{"setting", "type", "default", "check", "meaning"}};
  for (const auto& row : rows) {
    table.push_back({row.name, row.type, row.value, row.check, row.help});
  }
  return table;
}

TextTable ablations_table(const std::vector<Ablation>& ablations) {
  TextTable table = {{"ablation", "settings"}};
  for (const auto& ablation : ablations) {
    std::vector<std::string> parts;
    for (const auto& [name, value] : ablation.settings) {
      parts.push_back(fmt::format("{}={}", name, text_of(value)));
    }
    table.push_back({ablation.label, fmt::format("{}", fmt::join(parts, ", "))});
  }
  return table;
}

TextTable search_table(const SearchSpace& search) {
  TextTable table = {{"searched", "values"}};
  for (const auto& [name, values] : search) table.push_back({name, text_of(values)});
  return table;
}

std::string models_page() {
  std::string out =
      "# Models\n\nGenerated by `tessera models --markdown`; a test compares. Every setting is "
      "also "
      "a flag (`--n_layers 2`) and a line of a settings file.\n\n";
  std::vector<ModelDescription> all;
  for (const auto& info : models()) all.push_back(describe(info));
  out += markdown(models_table(all));
  for (const auto& one : all) {
    out += fmt::format("\n## {}\n\n{}.\n", one.name, one.title);
    if (!one.aliases.empty()) {
      out += fmt::format("\nAlso found as {}.\n", fmt::join(one.aliases, ", "));
    }
    out += "\n" + (one.settings.empty() ? "No settings of its own.\n"
                                        : markdown(settings_table(one.settings)));
    if (!one.own_defaults.empty()) {
      std::vector<std::string> parts;
      for (const auto& [name, value] : one.own_defaults) {
        parts.push_back(fmt::format("`{} = {}`", name, text_of(value)));
      }
      out += fmt::format("\nIts own defaults of training settings: {}.\n", fmt::join(parts, ", "));
    }
    if (!one.ablations.empty()) {
      out += "\nAblation set (with image and text features):\n\n" +
             markdown(ablations_table(one.ablations));
    }
    if (!one.search.empty()) {
      out += "\nSearched by `tessera tune` where no `--search` is given:\n\n" +
             markdown(search_table(one.search));
    }
  }
  return out + "\n## Training settings of every model\n\n" +
         markdown(settings_table(training_rows()));
}

}  // namespace tessera

#include <algorithm>
#include <memory>
#include <optional>

#include "cli/cli.h"
#include "tessera/model/registry.h"

namespace tessera::cli {
namespace {

using Table = std::vector<std::vector<std::string>>;  // the first row is the head

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string aligned(const Table& table) {
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

std::string markdown(const Table& table) {
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

/// What the model says of itself at its default settings, from an instance on a tiny dataset.
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

/// The ablation set for data with pictures and words.
std::vector<Ablation> ablations_of(const ModelInfo& info) {
  return info.ablations ? info.ablations({"image", "text"}) : std::vector<Ablation>{};
}

std::vector<Fields::Row> own_settings(const ModelInfo& info) {
  return info.fields()->rows();
}

/// The training's settings; with a model, its own defaults of them.
std::vector<Fields::Row> training_settings(const ModelInfo* info) {
  TrainSettings train;
  Fields fields("training");
  train.describe(fields);
  auto rows = fields.rows();
  if (info) {
    const auto own = info->fields();
    for (const auto& [name, value] : own->global_defaults()) {
      for (auto& row : rows) {
        if (row.name == name) row.value = text_of(value);
      }
    }
  }
  return rows;
}

Table settings_table(const std::vector<Fields::Row>& rows) {
  Table table = {{"setting", "type", "default", "check", "meaning"}};
  for (const auto& row : rows) {
    table.push_back({row.name, row.type, row.value, row.check, row.help});
  }
  return table;
}

Table ablation_table(const std::vector<Ablation>& ablations) {
  Table table = {{"ablation", "settings"}};
  for (const auto& ablation : ablations) {
    std::vector<std::string> parts;
    for (const auto& [name, value] : ablation.settings) {
      parts.push_back(fmt::format("{}={}", name, text_of(value)));
    }
    table.push_back({ablation.label, fmt::format("{}", fmt::join(parts, ", "))});
  }
  return table;
}

Table models_table() {
  Table table = {{"model", "learns from features", "features when ranking", "ranks cold items",
                  "takes histories", "title"}};
  auto word = [](bool yes) { return yes ? "yes" : "no"; };
  for (const auto& info : models()) {
    const Abilities can = abilities_of(info);
    table.push_back({info.name, word(can.uses_features), word(can.score_reads_features),
                     word(can.ranks_cold_items), word(can.takes_histories), info.title});
  }
  return table;
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

Json model_json(const ModelInfo& info, bool settings) {
  Abilities can = abilities_of(info);
  Json out = {{"name", info.name}, {"title", info.title}, {"aliases", alias_names(info)}};
  for (const auto& [name, flag] : flags_of(can)) out[name] = *flag;
  if (settings) {
    out["settings"] = settings_json(own_settings(info));
    out["training"] = settings_json(training_settings(&info));
    out["ablations"] = Json::array();
    for (const auto& ablation : ablations_of(info)) {
      Json set = Json::object();
      for (const auto& [name, value] : ablation.settings) set[name] = value;
      out["ablations"].push_back({{"label", ablation.label}, {"settings", set}});
    }
  }
  return out;
}

/// docs/models.md as it must be.
std::string document() {
  std::string out =
      "# Models\n\nGenerated by `tessera models --markdown`; a test compares. Every setting is "
      "also "
      "a flag (`--n_layers 2`) and a line of a settings file.\n\n";
  out += markdown(models_table());
  for (const auto& info : models()) {
    out += fmt::format("\n## {}\n\n{}.\n", info.name, info.title);
    if (!info.aliases.empty()) {
      out += fmt::format("\nAlso found as {}.\n", fmt::join(alias_names(info), ", "));
    }
    const auto rows = own_settings(info);
    out += "\n" + (rows.empty() ? "No settings of its own.\n" : markdown(settings_table(rows)));
    const auto own = info.fields();
    if (!own->global_defaults().empty()) {
      std::vector<std::string> parts;
      for (const auto& [name, value] : own->global_defaults()) {
        parts.push_back(fmt::format("`{} = {}`", name, text_of(value)));
      }
      out += fmt::format("\nIts own defaults of training settings: {}.\n", fmt::join(parts, ", "));
    }
    if (const auto ablations = ablations_of(info); !ablations.empty()) {
      out += "\nAblation set (with image and text features):\n\n" +
             markdown(ablation_table(ablations));
    }
  }
  out += "\n## Training settings of every model\n\n" +
         markdown(settings_table(training_settings(nullptr)));
  return out;
}

void show(const Common& common, const std::string& name, bool as_markdown) {
  if (as_markdown) {
    if (!name.empty()) throw usage_error("--markdown prints all models, leave out '{}'", name);
    print(document());
    return;
  }
  if (name.empty()) {
    if (common.json) {
      Json out = Json::array();
      for (const auto& info : models()) out.push_back(model_json(info, false));
      print_json(out);
    } else {
      print(aligned(models_table()));
    }
    return;
  }
  const ModelInfo& info = find_model(name);
  if (common.json) {
    print_json(model_json(info, true));
    return;
  }
  std::string out = fmt::format("{}: {}\n\n", info.name, info.title);
  const auto rows = own_settings(info);
  out += rows.empty() ? "no settings of its own\n" : aligned(settings_table(rows));
  out += "\ntraining\n" + aligned(settings_table(training_settings(&info)));
  if (const auto ablations = ablations_of(info); !ablations.empty()) {
    out += "\n" + aligned(ablation_table(ablations));
  }
  print(out);
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

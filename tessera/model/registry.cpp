#include "tessera/model/registry.h"

#include <algorithm>

#include "tessera/base/error.h"

namespace tessera {
namespace {

std::vector<ModelInfo>& registered() {
  static std::vector<ModelInfo> all;
  return all;
}

}  // namespace

void register_model(ModelInfo info) {
  auto& all = registered();
  const auto place =
      std::lower_bound(all.begin(), all.end(), info,
                       [](const ModelInfo& a, const ModelInfo& b) { return a.name < b.name; });
  all.insert(place, std::move(info));
}

const std::vector<ModelInfo>& models() { return registered(); }

const ModelInfo& find_model(const std::string& name) {
  const std::string wanted = squeezed(name);
  std::vector<std::string> names;
  for (const auto& info : models()) {
    names.push_back(info.name);
    if (squeezed(info.name) == wanted) return info;
    for (const auto& [alias, settings] : info.aliases) {
      names.push_back(alias);
      if (squeezed(alias) == wanted) return info;
    }
  }
  throw usage_error("no model '{}'{}", printable(name), did_you_mean(name, names));
}

Settings implied_settings(const std::string& name) {
  for (const auto& [alias, settings] : find_model(name).aliases) {
    if (squeezed(alias) == squeezed(name)) return settings;
  }
  return {};
}

RunSettings resolve_settings(const ModelInfo& model, const Settings& given) {
  RunSettings out;
  out.given = given;
  Fields shared("train");
  out.train_settings.describe(shared);
  refuse_unknown(given, {model.fields().get(), &shared}, model.name);
  out.config = model.resolve(given);
  const Fields& own = *out.config.fields;
  Settings all;
  for (const auto& [name, value] : own.global_defaults()) {
    all.push_back({name, value, model.name + " default"});
  }
  for (const auto& [name, value] : own.global_presets()) {
    all.push_back({name, value, model.name + " preset"});
  }
  all.insert(all.end(), given.begin(), given.end());
  shared.apply(all);
  out.train = shared.resolved();
  out.model = own.resolved();
  return out;
}

}  // namespace tessera

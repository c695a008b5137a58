#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tessera/model/model.h"
#include "tessera/ops/device.h"

namespace tessera {

/// A row of a model's registered ablation set.
struct Ablation {
  std::string label;
  std::vector<std::pair<std::string, Json>> settings;
};

/// Settings and what they are searched over, as `search:` in a settings file writes it: a list, or
/// "uniform(0, 0.5)" and the like.
using SearchSpace = std::vector<std::pair<std::string, Json>>;

/// A model's own settings with what was given applied and checked, and the model that they make.
struct ResolvedConfig {
  std::shared_ptr<const Fields> fields;  ///< of the config, which lives as long
  std::string label;  ///< what every output must say ("paper body not checked"); empty: nothing
  std::function<std::unique_ptr<Model>(const Context&)> make;
};

struct ModelInfo {
  std::string name;   ///< as its paper spells it
  std::string title;  ///< "LightGCN, He et al. 2020"
  /// Other names, and the settings that such a name implies ("ItemKNNCBF": similarity = content).
  std::vector<std::pair<std::string, Settings>> aliases;
  /// Takes the settings whose names are the model's; exit 2 for a value that it refuses.
  std::function<ResolvedConfig(const Settings&)> resolve;
  /// The registered ablation set for data with these modalities; empty where there is none.
  std::function<std::vector<Ablation>(const std::vector<std::string>&)> ablations;
  SearchSpace search;  ///< the grid of its paper; empty where nothing is trained or set

  /// Names, help and defaults of its settings.
  std::shared_ptr<const Fields> fields() const { return resolve({}).fields; }
  std::unique_ptr<Model> make(const Settings& settings, const Context& context) const {
    return resolve(settings).make(context);
  }
};

/// Every registered model, by name.
const std::vector<ModelInfo>& models();
/// The model of that name, without regard to case and punctuation; exit 2 with the nearest name.
const ModelInfo& find_model(const std::string& name);
/// What the name implies when it is one of the model's aliases, else nothing.
Settings implied_settings(const std::string& name);

void register_model(ModelInfo info);

/// All settings of a run, the model's own and the training's, checked: values with their origin, as
/// a config, and as the model that they make.
struct RunSettings {
  std::vector<Resolved> model, train;
  TrainSettings train_settings;
  Settings given;
  ResolvedConfig config;
};
/// Exit 2 for an unknown name and for a value that is refused.
RunSettings resolve_settings(const ModelInfo& model, const Settings& given);

/// What the registry holds of the model class M.
template <typename M>
ModelInfo model_info(const std::string& name, const std::string& title,
                     std::vector<std::pair<std::string, Settings>> aliases = {}) {
  using Config = typename M::Config;
  struct Described {
    explicit Described(const std::string& name) : fields(name) { config.describe(fields); }
    Config config;
    Fields fields;  // holds references into config
  };
  ModelInfo info;
  info.name = name;
  info.title = title;
  info.aliases = std::move(aliases);
  info.resolve = [name](const Settings& settings) {
    const auto described = std::make_shared<Described>(name);
    described->fields.apply(settings);
    ResolvedConfig out;
    out.fields = {described, &described->fields};
    if constexpr (requires(const Config& config) { config.label(); }) {
      out.label = std::as_const(described->config).label();
    }
    out.make = [described](const Context& context) {
      const ReferenceOps plain(context.train.reference());
      return std::make_unique<M>(described->config, context);
    };
    return out;
  };
  if constexpr (requires { Config::ablations({}); }) info.ablations = Config::ablations;
  if constexpr (requires { Config::search(); }) info.search = Config::search();
  return info;
}

/// One line at the end of a model's file makes it known:
///   const RegisterModel<LightGcn> registered{"LightGCN", "LightGCN, He et al. 2020"};
template <typename M>
struct RegisterModel {
  RegisterModel(const std::string& name, const std::string& title,
                std::vector<std::pair<std::string, Settings>> aliases = {}) {
    register_model(model_info<M>(name, title, std::move(aliases)));
  }
};

}  // namespace tessera

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

struct ModelInfo {
  std::string name;   ///< as its paper spells it
  std::string title;  ///< "LightGCN, He et al. 2020"
  /// Other names, and the settings that such a name implies ("ItemKNNCBF": similarity = content).
  std::vector<std::pair<std::string, Settings>> aliases;
  std::function<void(Fields&)> describe;  ///< with a default Config
  std::function<std::unique_ptr<Model>(const Settings&, const Context&)> make;
  std::function<std::vector<Resolved>(const Settings&)> resolve;
  /// What every output of these settings must say ("paper body not checked"); empty: nothing.
  std::function<std::string(const Settings&)> label;
  /// The registered ablation set for data with these modalities; empty where there is none.
  std::function<std::vector<Ablation>(const std::vector<std::string>&)> ablations;
  SearchSpace search;  ///< the grid of its paper; empty where nothing is trained or set
};

/// Every registered model, by name.
const std::vector<ModelInfo>& models();
/// The model of that name, without regard to case and punctuation; exit 2 with the nearest name.
const ModelInfo& find_model(const std::string& name);
/// What the name implies when it is one of the model's aliases, else nothing.
Settings implied_settings(const std::string& name);

void register_model(ModelInfo info);

/// All settings of a run: the model's own and the training's, checked. Unknown names end with
/// exit 2.
struct RunSettings {
  std::vector<Resolved> model, train;
  TrainSettings train_settings;
  Settings given;
};
RunSettings resolve_settings(const ModelInfo& model, const Settings& given);

/// One line at the end of a model's file makes it known:
///   const RegisterModel<LightGcn> registered{"LightGCN", "LightGCN, He et al. 2020"};
template <typename M>
struct RegisterModel {
  RegisterModel(const std::string& name, const std::string& title,
                std::vector<std::pair<std::string, Settings>> aliases = {}) {
    ModelInfo info;
    info.name = name;
    info.title = title;
    info.aliases = std::move(aliases);
    info.describe = [](Fields& f) {
      static thread_local typename M::Config config;
      config = {};
      config.describe(f);
    };
    info.make = [name](const Settings& settings, const Context& context) {
      typename M::Config config;
      Fields f(name);
      config.describe(f);
      f.apply(settings);
      const ReferenceOps plain(context.train.reference());
      return std::make_unique<M>(config, context);
    };
    info.resolve = [name](const Settings& settings) {
      typename M::Config config;
      Fields f(name);
      config.describe(f);
      f.apply(settings);
      return f.resolved();
    };
    if constexpr (requires(const typename M::Config& config) { config.label(); }) {
      info.label = [name](const Settings& settings) {
        typename M::Config config;
        Fields f(name);
        config.describe(f);
        f.apply(settings);
        return config.label();
      };
    }
    if constexpr (requires { M::Config::ablations({}); }) info.ablations = M::Config::ablations;
    if constexpr (requires { M::Config::search(); }) info.search = M::Config::search();
    register_model(std::move(info));
  }
};

}  // namespace tessera

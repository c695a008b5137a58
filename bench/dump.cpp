// dump DATASET MODEL OUT.safetensors [--name=value...]: what a training starts from and sees in its
// first 50 steps, so that another program can repeat it: weights after prepare() under "init.",
// users, positives, negatives and dropout masks of step k under "k.", the losses under "loss".
// Of sequence models step k has the rows (items, offsets), the targets and the epoch, and no masks:
// give their dropouts as 0.
#include <torch/types.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "tessera/base/error.h"
#include "tessera/data/safetensors.h"
#include "tessera/model/registry.h"
#include "tessera/ops/fill.h"
#include "tessera/train/train.h"

namespace tessera {
namespace {

constexpr int64_t kSteps = 50;

/// Stands between trainer and model and writes down what passes.
class Spy : public Model {
 public:
  Spy(Model& inner, const Context& context, double dropout)
      : Model(context), inner_(inner), dropout_(dropout) {}

  Abilities abilities() const override { return inner_.abilities(); }
  BatchSpec batch_spec() const override { return inner_.batch_spec(); }
  torch::Tensor score(const Queries& queries) override { return inner_.score(queries); }
  std::vector<ParameterGroup> parameter_groups() override { return inner_.parameter_groups(); }
  void state(State& state) override { inner_.state(state); }
  void prepare(const Watch& watch) override {
    inner_.prepare(watch);
    State state;
    inner_.state(state);
    const State::Saved start = state.save();
    for (const auto* tensors : {&start.weights, &start.optimizer}) {
      for (const auto& [name, tensor] : *tensors) seen["init." + name] = tensor.detach().clone();
    }
  }
  void begin_epoch(int64_t epoch, const Watch& watch) override { inner_.begin_epoch(epoch, watch); }
  Loss loss(const Batch& batch) override {
    const std::string k = std::to_string(batch.step) + ".";
    const auto keep = [&](const char* name, const torch::Tensor& tensor) {
      if (tensor.defined()) seen[k + name] = tensor.to(torch::kInt64);
    };
    keep("users", batch.users);
    keep("positives", batch.positives);
    keep("negatives", batch.negatives);
    keep("items", batch.rows.items);
    keep("offsets", batch.rows.offsets);
    keep("targets", batch.targets);
    if (batch.rows.defined()) keep("epoch", torch::tensor(batch.epoch));
    if (dropout_ > 0 && batch.users.defined()) {
      const auto mask = [&](const std::string& name, const torch::Tensor& rows, int64_t width) {
        seen[k + "kept." + name.substr(name.find('.') + 1)] =
            dropout_mask(rows, width, dropout_, random_.stream("drop." + name), batch.step) > 0;
      };
      const int64_t d = inner_.parameter_groups()[0].tensors[0].second->size(1);
      seen[k + "distinct_users"] = batch.distinct_users;
      seen[k + "distinct_items"] = batch.distinct_items;
      mask("user", batch.distinct_users, d);
      mask("item", batch.distinct_items, d);
      for (const auto& feature : data_.features)
        mask("modality." + feature.name, batch.distinct_items, d);
    }
    Loss loss = inner_.loss(batch);
    losses.push_back(loss.total.item<double>());
    return loss;
  }

  TensorMap seen;
  std::vector<double> losses;

 protected:
  void forget() override { inner_.train(training()); }

 private:
  Model& inner_;
  const double dropout_;
};

int run(int argc, char** argv) {
  if (argc < 4) throw usage_error("dump wants DATASET MODEL OUT.safetensors [--name=value...]");
  Settings given = implied_settings(argv[2]);
  for (int i = 4; i < argc; ++i) {
    const std::string token = argv[i];
    const size_t equals = token.find('=');
    if (token.rfind("--", 0) != 0 || equals == std::string::npos) {
      throw usage_error("dump wants --name=value, got '{}'", token);
    }
    const std::string value = token.substr(equals + 1);
    given.push_back({token.substr(2, equals - 2),
                     Json::accept(value) ? Json::parse(value) : Json(value), "flag"});
  }
  const ModelInfo& info = find_model(argv[2]);
  const RunSettings settings = resolve_settings(info, given);
  DatasetView view;
  view.modalities = settings.train_settings.modalities;
  const Dataset data = load_dataset(argv[1], view);
  const Context context{data, Random(settings.train_settings.seed), settings.train_settings, Log()};
  const auto model = info.make(settings.given, context);
  double dropout = 0;
  for (const auto& setting : settings.model) {
    if (setting.name == "dropout") dropout = setting.value;
  }

  Spy spy(*model, context, dropout);
  TrainConfig config;
  config.settings = settings.train_settings;
  config.protocol = find_protocol("mmrec");
  config.stop_requested = [&] { return spy.losses.size() >= kSteps; };
  try {
    train_model(spy, data, config);
  } catch (const RunError&) {  // stopped after kSteps
  }
  spy.seen["loss"] = torch::tensor(spy.losses, torch::kFloat64);
  write_safetensors(argv[3], spy.seen);
  std::printf("%s: %zu steps, loss %.6f to %.6f\n", argv[3], spy.losses.size(), spy.losses.front(),
              spy.losses.back());
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  try {
    return tessera::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}

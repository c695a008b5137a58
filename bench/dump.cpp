// dump DATASET MODEL OUT.safetensors [--name=value...]: what a training starts from and sees in its
// first 50 steps, so that another program can repeat it: weights after prepare() under "init.",
// users, positives, negatives and dropout masks of step k under "k.", the losses under "loss", what
// a validation found before the first under "valid.". Of sequence models step k has the rows
// (items, offsets), the targets and the epoch, and no masks: give their dropouts as 0. Of MMSSL
// also the weights of the interpolates under "k.alpha" and its generated graphs, "k.edges.NAME", at
// steps that see new ones. Of a model that is pretrained on items also the weights before that
// under "start.", the items of its first 50 steps under "pre.k.items" from k = 0, the losses under
// "pre.loss", and rows of a modality under "x." where they are not as wide as the dataset's.
#include <torch/types.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "bench/recorder.h"
#include "tessera/base/error.h"
#include "tessera/data/safetensors.h"
#include "tessera/folder/load.h"
#include "tessera/model/offers.h"
#include "tessera/model/registry.h"
#include "tessera/ops/fill.h"
#include "tessera/train/train.h"

namespace tessera {
namespace {

constexpr size_t kSteps = 50;

class Spy : public Recorder {
 public:
  Spy(Model& inner, const Dataset& dataset, const Context& context, double dropout)
      : Recorder(inner, dataset, context), dropout_(dropout) {}

  void prepare(const Watch& watch) override {
    // An epoch of pretraining is behind such a model already, and is enough of a start.
    if (inner_.offers().pretraining == nullptr) return Recorder::prepare(watch);
    keep_weights("init.");
  }
  void begin_epoch(int64_t epoch, const Watch& watch) override {
    if (epoch == 0 && has_rows(dataset_, Split::valid)) keep_evaluation();
    Recorder::begin_epoch(epoch, watch);
  }

 protected:
  void note(const Batch& batch, const std::string& k) override {
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
    if (batch_spec().unit == BatchSpec::Unit::distinct_user) {
      seen[k + "alpha"] = alpha(batch);
      keep_edges(k);
    }
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
  }

 private:
  /// MMSSL's, with one step of the discriminator. float32 [n_modalities * B]
  torch::Tensor alpha(const Batch& batch) const {
    std::vector<float> out;
    const Random random = random_.stream("alpha");
    for (size_t j = 0; j < data_.features.size() * static_cast<size_t>(batch.size()); ++j) {
      out.push_back(static_cast<float>(random.uniform(static_cast<uint64_t>(batch.step), j, 0)));
    }
    return torch::tensor(out);
  }

  /// Those that differ from what was kept last; -2 before the first: the train graph.
  void keep_edges(const std::string& k) {
    State state;
    inner_.state(state);
    for (const auto& [name, edges] : state.save(true).weights) {
      if (!name.ends_with(".edges") || (edges == -2).any().item<bool>()) continue;
      auto& last = edges_[name];
      if (last.defined() && torch::equal(last, edges)) continue;
      last = edges.clone();
      seen[k + "edges." + name.substr(0, name.rfind('.'))] = last;
    }
  }

  const double dropout_;
  std::map<std::string, torch::Tensor> edges_;
};

/// The first steps of a pretraining on items; it ends with its first epoch.
void pretrain(Model& model, const Dataset& data, Spy& spy) {
  auto* pretrainer = model.offers().pretraining;
  if (pretrainer == nullptr) return;
  TensorMap& seen = spy.seen;
  spy.keep_weights("start.");
  for (size_t m = 0; m < data.features.size(); ++m) {
    const auto& rows = pretrainer->pretraining_rows()[m];
    if (rows.size(1) != data.features[m].width()) seen["x." + data.features[m].name] = rows;
  }
  std::vector<double> losses;
  pretrainer->on_pretraining_step = [&](const torch::Tensor& items, double loss) {
    if (losses.size() >= kSteps) return;
    seen["pre." + std::to_string(losses.size()) + ".items"] = items.clone();
    losses.push_back(loss);
  };
  Watch watch;
  watch.stop_requested = [&] { return !losses.empty(); };
  model.offers().features->fit(watch);
  pretrainer->on_pretraining_step = nullptr;
  seen["pre.loss"] = torch::tensor(losses, torch::kFloat64);
}

int run(int argc, char** argv) {
  if (argc < 4) throw usage_error("dump wants DATASET MODEL OUT.safetensors [--name=value...]");
  Settings given = implied_settings(argv[2]);
  for (const auto& [name, value] : given_pairs(argc, argv, 4, "dump")) give(given, name, value);
  const ModelInfo& info = find_model(argv[2]);
  const RunSettings settings = resolve_settings(info, given);
  DatasetView view;
  view.modalities = settings.train_settings.modalities;
  const Dataset data = load_dataset(argv[1], view);
  const Context context{data.view(), Random(settings.train_settings.seed), settings.train_settings,
                        Log()};
  const auto model = info.make(settings.given, context);
  double dropout = 0;
  for (const auto& setting : settings.model) {
    if (setting.name == "dropout") dropout = setting.value;
  }

  Spy spy(*model, data, context, dropout);
  pretrain(*model, data, spy);
  spy.train_steps(kSteps, settings.train_settings);
  spy.write(argv[3]);
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

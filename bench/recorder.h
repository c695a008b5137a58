#pragma once

#include <torch/types.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/error.h"
#include "tessera/data/safetensors.h"
#include "tessera/eval/evaluate.h"
#include "tessera/model/forwarding_model.h"
#include "tessera/model/offers.h"
#include "tessera/model/registry.h"
#include "tessera/train/train.h"

/// What bench_dump and bench_r2mr share: their arguments, and a model that writes down its steps.
namespace tessera {

/// argv[from..] as (name, value), each given as --name=value.
inline std::vector<std::pair<std::string, std::string>> given_pairs(int argc, char** argv, int from,
                                                                    const char* who) {
  std::vector<std::pair<std::string, std::string>> out;
  for (int i = from; i < argc; ++i) {
    const std::string token = argv[i];
    const size_t equals = token.find('=');
    if (token.rfind("--", 0) != 0 || equals == std::string::npos) {
      throw usage_error("{} wants --name=value, got '{}'", who, token);
    }
    out.emplace_back(token.substr(2, equals - 2), token.substr(equals + 1));
  }
  return out;
}

inline void give(Settings& settings, const std::string& name, const std::string& value) {
  settings.push_back({name, Json::accept(value) ? Json::parse(value) : Json(value), "flag"});
}

/// Stands between trainer and model and writes down what passes: weights after prepare() under
/// "init.", the losses, and what note() keeps of a batch.
class Recorder : public ForwardingModel, private OwnStep {
 public:
  Recorder(Model& inner, const Dataset& dataset, const Context& context)
      : ForwardingModel(inner, context), dataset_(dataset) {}

  void prepare(const Watch& watch) override {
    inner_.prepare(watch);
    keep_weights("init.");
  }
  Loss loss(const Batch& batch) override {
    return kept(batch, [&] { return inner_.loss(batch); });
  }
  /// A model that steps itself is still one.
  Offers offers() override {
    Offers offers = inner_.offers();
    if (offers.step != nullptr) offers.step = this;
    return offers;
  }

  /// Weights and what else the state saves, as they are now.
  void keep_weights(const std::string& prefix) {
    State state;
    inner_.state(state);
    const State::Saved saved = state.save();
    for (const auto* tensors : {&saved.weights, &saved.optimizer}) {
      for (const auto& [name, tensor] : *tensors) seen[prefix + name] = tensor.detach().clone();
    }
  }
  /// What validation finds now, each metric under "valid.", and lists of the first users.
  void keep_evaluation() {
    EvalOptions options;
    for (const char* metric : {"recall", "precision", "ndcg", "hit", "map", "mrr"}) {
      for (const char* k : {"@5", "@10", "@20", "@50"})
        options.metrics.push_back(metric + std::string(k));
    }
    inner_.train(false);
    const auto found = evaluate(inner_, dataset_, find_protocol("mmrec"), Split::valid, options);
    for (const auto& [name, value] : found.metrics) {
      seen["valid." + name] = torch::tensor(value, torch::kFloat64);
    }
    Queries first{torch::arange(std::min<int64_t>(1000, data_.n_users), torch::kInt64), {}};
    const auto rows = [&](const Interactions& train) {
      return Ragged{train.items, train.offsets.slice(0, 0, first.size() + 1)};
    };
    if (abilities().takes_histories) first.histories = rows(data_.train);
    const int64_t k = std::min<int64_t>(50, data_.n_items);
    seen["lists"] = inner_.freeze()->top(first, rows(data_.train_distinct), {}, k).items;
    inner_.train(training());
    seen["valid.n_users"] = torch::tensor(static_cast<double>(found.n_users), torch::kFloat64);
  }
  /// Trains `n_steps` steps and keeps their losses under "loss".
  void train_steps(size_t n_steps, const TrainSettings& settings) {
    TrainConfig config;
    config.settings = settings;
    config.protocol = find_protocol("mmrec");
    config.stop_requested = [&] { return losses.size() >= n_steps; };
    try {
      train_model(*this, dataset_, config);
    } catch (const RunError&) {
      if (losses.size() < n_steps) throw;  // stopped for another reason
    }
    seen["loss"] = torch::tensor(losses, torch::kFloat64);
  }
  void write(const std::string& path) const {
    write_safetensors(path, seen);
    std::printf("%s: %zu steps, loss %.6f to %.6f\n", path.c_str(), losses.size(), losses.front(),
                losses.back());
  }

  TensorMap seen;
  std::vector<double> losses;

 protected:
  virtual void note(const Batch& batch, const std::string& k) = 0;

  const Dataset& dataset_;

 private:
  Loss step(const Batch& batch) override {
    return kept(batch, [&] { return inner_.offers().step->step(batch); });
  }
  template <typename Step>
  Loss kept(const Batch& batch, const Step& step) {
    note(batch, std::to_string(batch.step) + ".");
    Loss loss = step();
    losses.push_back(loss.total.template item<double>());
    return loss;
  }
};

}  // namespace tessera

// What bench/race asks of R2MR beside `tessera train`:
//   bench_r2mr DATASET --dump=OUT.safetensors [--name=value...]: what a training starts from and
//     sees in its first 20 steps (names as in dump.cpp: "init.", "k.", "loss"), and the same of the
//     rewriter alone ("gan.init.", "gan.k.", "gan.loss"; its losses are the mean distances)
//   bench_r2mr DATASET --round=N: seconds of one rewriting round with N epochs of the rewriter
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <chrono>
#include <cstdio>

#include "bench/recorder.h"
#include "tessera/base/error.h"
#include "tessera/data/safetensors.h"
#include "tessera/folder/load.h"
#include "tessera/model/registry.h"
#include "tessera/nn/vector_gan.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/process.h"
#include "tessera/train/train.h"

namespace tessera {
namespace {

constexpr size_t kSteps = 20;
constexpr int64_t kRows = 128;
constexpr int64_t kGanSteps = 20;  // later a slot may lie between two codes, and the runs part

class Spy : public Recorder {
 public:
  Spy(Model& inner, const Dataset& dataset, const Context& context, std::string drawn,
      double dropout)
      : Recorder(inner, dataset, context), drawn_(std::move(drawn)), dropout_(dropout) {}

 protected:
  void note(const Batch& batch, const std::string& k) override {
    seen[k + "users"] = batch.users;
    seen[k + "positives"] = batch.positives;
    seen[k + "negatives"] = batch.negatives;
    const int64_t d = seen.at("init.user_embedding").size(1);
    seen[k + "kept"] = dropout_mask(torch::arange(data_.n_users, torch::kInt64), d, dropout_,
                                    random_.stream(drawn_), batch.step) > 0;
  }

 private:
  const std::string drawn_;
  const double dropout_;
};

/// Steps of the rewriter on rows drawn among the items, in both directions.
void dump_rewriter(TensorMap& seen, const Random& random) {
  VectorGan gan({}, random);
  for (const auto& [name, tensor] : gan.tensors()) {
    if (name.rfind("gan.", 0) == 0) {
      seen["gan.init." + name.substr(4)] = tensor->detach().clone();
    }
  }
  const std::vector<torch::Tensor> rows = {seen.at("init.image.rows"), seen.at("init.text.rows")};
  const auto n_items = static_cast<uint32_t>(rows[0].size(0));
  std::vector<double> losses;
  for (int64_t step = 1; step <= kGanSteps; ++step) {
    std::vector<int64_t> items;
    for (int64_t r = 0; r < kRows; ++r) {
      uint32_t draw = 0;
      items.push_back(
          random.below(n_items, static_cast<uint64_t>(step), static_cast<uint64_t>(r), draw));
    }
    const auto index = torch::tensor(items, torch::kInt64);
    const auto direction = torch::arange(kRows, torch::kInt64).remainder(2);
    const auto forth = (direction == 0).unsqueeze(1);
    const auto a = rows[0].index_select(0, index), b = rows[1].index_select(0, index);
    const auto source = torch::where(forth, a, b), target = torch::where(forth, b, a);
    const std::string k = "gan." + std::to_string(step) + ".";
    seen[k + "source"] = source;
    seen[k + "target"] = target;
    seen[k + "direction"] = direction;
    losses.push_back(gan.step(source, target, direction));
  }
  seen["gan.loss"] = torch::tensor(losses, torch::kFloat64);
}

int measure(int argc, char** argv) {
  std::string out;
  int64_t n_epochs = 0;
  Settings given;
  for (const auto& [name, value] : given_pairs(argc, argv, 2, "bench_r2mr")) {
    if (name == "dump") {
      out = value;
    } else if (name == "round") {
      n_epochs = std::stoll(value);
    } else {
      give(given, name, value);
    }
  }
  if (argc < 2 || (out.empty() && n_epochs < 1)) {
    throw usage_error("bench_r2mr wants DATASET and --dump=FILE or --round=EPOCHS");
  }
  if (n_epochs > 0) {
    given.push_back({"rewrite_every", 1, "round"});
    given.push_back({"first_epochs", n_epochs, "round"});
    given.push_back({"hold_out", false, "round"});
    given.push_back({"eta", "0.5", "round"});  // random features carry no consensus
  }
  const ModelInfo& info = find_model("R2MR");
  const RunSettings settings = resolve_settings(info, given);
  own_process();
  use_threads(settings.train_settings.threads);
  const Dataset data = load_dataset(argv[1]);
  const Random random(static_cast<uint64_t>(settings.train_settings.seed));
  const Context context{data.view(), random, settings.train_settings, Log()};
  const auto model = info.make(settings.given, context);
  if (n_epochs > 0) {
    Json round;
    Watch watch;
    watch.log = [&](const Json& line) { round = line; };
    model->prepare(watch);
    const auto begin = std::chrono::steady_clock::now();
    model->end_epoch(1, watch);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (round.contains("skipped")) {
      throw data_error("the round was skipped: {}", round["skipped"].get<std::string>());
    }
    std::printf("%s\n", Json{{"round_s", took.count()},
                             {"high", round["areas"]["high"]},
                             {"peak_mb", peak_rss_mb()}}
                            .dump()
                            .c_str());
    return 0;
  }
  bool live = false;
  double dropout = 0;
  for (const auto& setting : settings.model) {
    if (setting.name == "reviewer") live = setting.value == "bpr";
    if (setting.name == "dropout") dropout = setting.value;
  }
  Spy spy(*model, data, context, live ? "drop.taste" : "drop.neighbours", dropout);
  spy.train_steps(kSteps, settings.train_settings);
  if (spy.seen.at("init.user_embedding").size(1) == VectorGanOptions().width) {
    dump_rewriter(spy.seen, random);
  }
  spy.write(out);
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  try {
    return tessera::measure(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}

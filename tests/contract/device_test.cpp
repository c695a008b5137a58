// Every registered model on every device: the same 50 losses, and as good an end.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "tessera/base/error.h"
#include "tests/contract/training.h"

namespace tessera {
namespace {

class EveryDevice : public testing::TestWithParam<std::string> {
 protected:
  const ModelInfo& info() const { return find_model(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Registry, EveryDevice, testing::ValuesIn(model_names()),
                         [](const auto& info) { return squeezed(info.param); });

struct DeviceRun {
  std::vector<double> losses;  ///< of the epochs
  TrainResult result;
  double time_s = 0;
};

/// At least 50 steps: in batches of everything, or what the model takes for an epoch.
DeviceRun run_on(const ModelInfo& info, const Dataset& data, const std::string& device,
                 int64_t seed) {
  const Settings settings = {{"device", device, "test"}, {"seed", seed, "test"},
                             {"epochs", 50, "test"},     {"train_batch_size", 4096, "test"},
                             {"eval_step", 50, "test"},  {"stopping_step", 50, "test"}};
  const fs::path folder = scratch("device_" + squeezed(info.name));
  const auto start = std::chrono::steady_clock::now();
  Trained trained(info, data, settings, folder);
  DeviceRun out;
  out.time_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  out.result = trained.result;
  std::ifstream in(folder / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const Json json = Json::parse(line);
    if (json.contains("loss") && json["phase"] == "train") {
      out.losses.push_back(json["loss"]["total"].get<double>());
    }
  }
  fs::remove_all(folder);
  return out;
}

TEST_P(EveryDevice, ReferenceTrainsAlike) {
  const Dataset data = small_data(2);
  const DeviceRun cpu = run_on(info(), data, "cpu", 1),
                  reference = run_on(info(), data, "reference", 1);
  ASSERT_EQ(cpu.losses.size(), reference.losses.size());
  if (info().make({}, Context{data.view(), Random(1), {}, {}})->trainable()) {
    EXPECT_EQ(cpu.losses.size(), 50U);
  }
  for (size_t i = 0; i < cpu.losses.size(); ++i) {
    EXPECT_NEAR(reference.losses[i], cpu.losses[i], 1e-4 * std::abs(cpu.losses[i]))
        << "epoch " << i;
  }
  const auto recall = [](const DeviceRun& run) { return run.result.test->value("recall@20"); };
  double least = recall(cpu), most = recall(cpu);
  for (const int64_t seed : {2, 3}) {
    const double other = recall(run_on(info(), data, "cpu", seed));
    least = std::min(least, other);
    most = std::max(most, other);
  }
  const double one_hit = 1.0 / static_cast<double>(data.n_users);
  EXPECT_NEAR(recall(reference), recall(cpu), std::max(most - least, one_hit));
  std::printf("%s: reference takes %.1f times as long as cpu, %.2f s\n", GetParam().c_str(),
              reference.time_s / cpu.time_s, cpu.time_s);
}

TEST(Devices, OthersAreRefusedByName) {
  const Dataset data = small_data(1);
  try {
    Trained(find_model("BPR"), data, {{"device", "cuda:0", "test"}});
    FAIL() << "a device that there is not was taken";
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    EXPECT_EQ(std::string(e.what()),
              "device 'cuda:0' is not available: this build computes on cpu and reference");
  }
}

}  // namespace
}  // namespace tessera

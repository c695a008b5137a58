// Two threads ask one recommender while a third exchanges what it answers from. Run by the thread
// sanitizer in tools/check_full.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tessera/base/error.h"
#include "tessera/serve/recommender.h"
#include "tests/contract/training.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

using Lists = std::vector<std::vector<int64_t>>;

Lists all_answers(const Recommender& from) {
  Lists out;
  Ask ask;
  ask.n = 4;
  ask.all_users = true;
  const auto keep = [&](const std::vector<ScoredItem>& items) {
    out.emplace_back();
    for (const auto& one : items) out.back().push_back(one.item);
  };
  for (const Answer& answer : from.recommend(ask)) keep(answer.items);
  for (const Answer& answer : from.recommend({.history = {"3", "1"}, .n = 3})) {
    keep(answer.items);
  }
  try {
    keep(from.similar("1", 3));
    keep(from.similar("1", 3, "image"));
  } catch (const InputError&) {
    out.push_back({-1});  // a model without neighbours
  }
  return out;
}

TEST(Threads, ShareOneRecommender) {
  PlantedOptions options;
  options.n_users = 24;
  options.n_items = 30;
  options.mean_rows = 8;
  options.n_modalities = 2;
  const Dataset data = planted_pairs(options);
  for (const ModelInfo& info : models()) {
    if (info.name.starts_with("Planted")) continue;  // of other tests, which train nothing
    const Trained trained(info, data, {{"epochs", 1, "test"}});
    const TempFolder folder;
    save_bundle(folder / "model", *trained.model, data, info, trained.settings, Json::object());
    Recommender recommender(load_bundle(folder / "model"));
    const Lists want = all_answers(recommender);
    std::atomic<int> wrong = 0, done = 0;
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 2; ++thread) {
      threads.emplace_back([&] {
        for (int round = 0; round < 3; ++round) wrong += all_answers(recommender) == want ? 0 : 1;
        ++done;
      });
    }
    threads.emplace_back([&] {
      const auto one = recommender.version();
      const auto other = make_version(
          load_bundle(folder / "model", {}, {.answers = true, .compare_by = {"image", "text"}}));
      for (int turn = 0; done < 2; ++turn) {
        recommender.exchange(turn % 2 == 0 ? other : one);
        std::this_thread::yield();
      }
    });
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0) << info.name;
  }
}

}  // namespace
}  // namespace tessera

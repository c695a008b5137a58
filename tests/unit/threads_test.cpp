// Two threads ask one recommender while a third exchanges what it answers from. Run by the thread
// sanitizer in tools/check_full.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tessera/serve/recommender.h"
#include "tests/planted_bundle.h"
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
  for (const Answer& answer : from.recommend({.history = {"cider", "apple"}, .n = 3})) {
    keep(answer.items);
  }
  try {
    keep(from.similar("apple", 3));
    keep(from.similar("apple", 3, "image"));
  } catch (const InputError&) {
    out.push_back({-1});  // a model without neighbours
  }
  return out;
}

TEST(Threads, ShareOneRecommender) {
  for (const char* name : {"PlantedFactors", "PlantedNeighbours", "PlantedPlain", "ItemKNN", "MC1",
                           "Popularity", "BPR", "LightGCN", "VBPR", "BM3", "FREEDOM", "MGCN",
                           "PAMD", "SASRec", "GRU4Rec", "BERT4Rec", "FDSA", "KDSR"}) {
    const TempFolder folder;
    planted::save(name, folder / "model");
    Recommender recommender(load_bundle(folder / "model"));
    const Lists want = all_answers(recommender);
    std::atomic<int> wrong = 0, done = 0;
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 2; ++thread) {
      threads.emplace_back([&] {
        for (int round = 0; round < 5; ++round) wrong += all_answers(recommender) == want ? 0 : 1;
        ++done;
      });
    }
    threads.emplace_back([&] {
      while (done < 2) recommender.exchange(recommender.version());
    });
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0) << name;
  }
}

}  // namespace
}  // namespace tessera

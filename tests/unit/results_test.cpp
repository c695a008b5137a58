#include "tessera/train/results.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tessera/base/error.h"

namespace tessera {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

RunResult full() {
  RunResult out;
  out.model = "BM3";
  out.dataset = "baby";
  out.seed = 999;
  out.protocol = "strict";
  out.seen = "mask";
  out.modalities = {"image", "text"};
  out.selection = {"valid", "recall@20", 73, 0.0903};
  out.valid = MetricValues{{"recall@20", 0.0903}};
  out.test = MetricValues{{"recall@20", 0.0883412}, {"ild_image@20", kNan}};
  out.slices = {{"cold", 3, 5, {{"recall@20", 0.25}}}};
  out.n_users = 17;
  out.test_looks = 2;
  out.audit = {{"seed", 999}, {"notes", {"one", "two"}}};
  out.n_parameters = 10;
  out.n_epochs = 80;
  out.n_steps = 160;
  out.stopped_by = "patience";
  out.time_s = {1.5, 0.25, 0.5, 0.125, 0.0625};
  out.peak_rss_mb = 700;
  return out;
}

/// The words with which `json` is refused; empty where it is read.
std::string refusal(const Json& json) {
  try {
    RunResult::read(json, "results.json");
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::data);
    return e.what();
  }
  return "";
}

// Keys and order of results.json as runs have written it (conventions section 3).
TEST(RunResult, IsWrittenAsUsersKnowIt) {
  EXPECT_EQ(full().json().dump(),
            R"({"model":"BM3","dataset":"baby","seed":999,"protocol":"strict","seen":"mask",)"
            R"("modalities":["image","text"],"permute":[],"selection":{"split":"valid",)"
            R"("metric":"recall@20","epoch":73,"value":0.0903},"valid":{"recall@20":0.0903},)"
            R"("test":{"recall@20":0.0883412,"ild_image@20":null},"slices":{"cold":{"n_users":3,)"
            R"("n_pairs":5,"metrics":{"recall@20":0.25}}},"n_users":17,"test_looks":2,)"
            R"("audit":{"seed":999,"notes":["one","two"]},"n_parameters":10,"n_epochs":80,)"
            R"("n_steps":160,"stopped_by":"patience","time_s":{"train":1.5,"eval":0.25,)"
            R"("epoch_median":0.5,"rank_test":0.125,"checkpoint":0.0625},"peak_rss_mb":700,)"
            R"("peak_gpu_mb":null})");
}

TEST(RunResult, ReadsWhatItWrote) {
  const Json json = full().json();
  const RunResult back = RunResult::read(json, "results.json");
  EXPECT_EQ(back.json(), json);
  EXPECT_EQ(back.reported(), "test");
  EXPECT_EQ(back.value("valid", "recall@20"), 0.0903);
  EXPECT_TRUE(std::isnan(back.value("test", "ild_image@20")));
  EXPECT_TRUE(std::isnan(back.value("test", "ndcg@20")));
  ASSERT_NE(back.slice("cold"), nullptr);
  EXPECT_EQ(back.slice("cold")->n_pairs, 5);
  EXPECT_EQ(back.slice("tail"), nullptr);
  EXPECT_EQ(back.notes(), (std::vector<std::string>{"one", "two"}));
}

TEST(RunResult, ReadsListsOfSomebodyElse) {
  RunResult lists;
  lists.recs = "theirs.tsv";
  lists.sha256 = "00ff";
  lists.dataset = "baby";
  lists.seed = 999;
  lists.protocol = "strict";
  lists.valid = MetricValues{{"recall@20", 0.5}};
  lists.time_s.eval = 0.5;
  const Json json = lists.json();
  EXPECT_EQ(json.dump(),
            R"({"recs":"theirs.tsv","sha256":"00ff","dataset":"baby","seed":999,)"
            R"("protocol":"strict","valid":{"recall@20":0.5},"test":null,"slices":{},"n_users":0,)"
            R"("test_looks":0,"audit":{},"time_s":{"eval":0.5}})");
  EXPECT_EQ(RunResult::read(json, "results.json").json(), json);
}

TEST(RunResult, ReadsResultsOfOlderVersions) {
  const RunResult old = RunResult::read({{"model", "BPR"},
                                         {"dataset", "baby"},
                                         {"seed", 1},
                                         {"protocol", "strict"},
                                         {"test", {{"recall@20", 1}}},
                                         {"time_s", {{"train", 2.0}}}},
                                        "results.json");
  EXPECT_EQ(old.value("test", "recall@20"), 1);
  EXPECT_FALSE(old.valid);
  EXPECT_FALSE(old.selection.value);
  EXPECT_FALSE(old.time_s.checkpoint);
  EXPECT_EQ(old.time_s.train, 2.0);
  EXPECT_FALSE(old.n_parameters);
}

TEST(RunResult, NamesWhatIsDamaged) {
  const auto with = [](const char* key, Json value) {
    Json json = full().json();
    json[key] = std::move(value);
    return refusal(json);
  };
  EXPECT_EQ(refusal(Json::array()), "results.json: wanted an object with 'recs', found array");
  EXPECT_EQ(with("seed", 1e300), "results.json: 'seed' must be an integer, found 1e+300");
  EXPECT_EQ(with("test", 5), "results.json: 'test' must be an object, found 5");
  EXPECT_EQ(with("test", {{"recall@20", "high"}}),
            R"(results.json: 'recall@20' must be a number, found "high")");
  EXPECT_EQ(with("modalities", "image"), "results.json: 'modalities' must be a list of texts");
  EXPECT_EQ(with("audit", {{"notes", {1}}}),
            "results.json: audit: 'notes' must be a list of texts");
  EXPECT_EQ(with("slices", {{"cold", {{"n_users", -0.5}}}}),
            "results.json: slice 'cold': 'n_users' must be an integer, found -0.5");
  EXPECT_EQ(with("time_s", {{"train", true}}),
            "results.json: 'train' must be a number, found true");
  Json without = full().json();
  without.erase("protocol");
  EXPECT_EQ(refusal(without), "results.json: 'protocol' is missing");
}

}  // namespace
}  // namespace tessera

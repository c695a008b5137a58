#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/study/compare.h"
#include "tessera/study/tune.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

template <typename Body>
std::string usage_of(Body body) {
  try {
    body();
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::usage) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

TEST(CompareRows, ReadsNamesSettingsLabelsAndLists) {
  const auto rows = parse_rows(
      "lightgcn, BM3[dropout=0.3,modalities=image+audio],paper=bm3[variant=paper],"
      "mine=recs:a/s1.tsv+a/s2.tsv,recs:b/theirs.tsv");
  ASSERT_EQ(rows.size(), 5U);
  EXPECT_EQ(rows[0].label, "LightGCN");
  EXPECT_TRUE(rows[0].bare);
  EXPECT_EQ(rows[1].label, "BM3[dropout=0.3,modalities=image+audio]");
  ASSERT_EQ(rows[1].settings.size(), 2U);
  EXPECT_EQ(rows[1].settings[1].name, "modalities");
  EXPECT_EQ(rows[1].settings[1].value, "image+audio");
  EXPECT_FALSE(rows[1].bare);
  EXPECT_EQ(rows[2].label, "paper");
  EXPECT_EQ(rows[2].model, "BM3");
  EXPECT_EQ(rows[3].lists, (std::vector<std::string>{"a/s1.tsv", "a/s2.tsv"}));
  EXPECT_EQ(rows[4].label, "theirs");
  EXPECT_TRUE(rows[4].model.empty());
}

TEST(CompareRows, RefusesWhatIsNoRow) {
  EXPECT_NE(usage_of([] { parse_rows("BM4"); }).find("did you mean 'BM3'"), std::string::npos);
  EXPECT_NE(usage_of([] { parse_rows("BM3[x"); }).find("'[' without ']'"), std::string::npos);
  EXPECT_NE(usage_of([] { parse_rows("BM3[dropout]"); }).find("name=value"), std::string::npos);
  EXPECT_NE(usage_of([] { parse_rows("BM3[a=1]x"); }).find("after ']'"), std::string::npos);
  EXPECT_NE(usage_of([] { parse_rows("BPR,bpr"); }).find("two rows"), std::string::npos);
  EXPECT_NE(usage_of([] { parse_rows("a b=BPR,a-b=BM3"); }).find("folder"), std::string::npos);
  EXPECT_NE(usage_of([] { parse_rows(" , "); }).find("no rows"), std::string::npos);
}

TEST(CompareRows, AblationsAreTheRegisteredSet) {
  const auto rows = with_ablations(parse_rows("BM3")[0], {"image", "audio"});
  std::set<std::string> labels;
  for (const auto& row : rows) labels.insert(row.label);
  EXPECT_EQ(rows[0].label, "BM3");
  EXPECT_TRUE(rows[0].settings.empty());
  for (const char* label :
       {"BM3, no alignment", "BM3, no masking", "BM3, audio alone", "BM3, features permuted"}) {
    EXPECT_TRUE(labels.contains(label)) << label;
  }
  EXPECT_EQ(with_ablations(parse_rows("Popularity")[0], {}).size(), 1U);
}

TEST(TuneSpace, ReadsListsAndRanges) {
  EXPECT_EQ(parse_dimension("n_layers", "1,2").values.size(), 2U);
  EXPECT_EQ(parse_dimension("n-layers", "[1, 2]").name, "n_layers");
  EXPECT_EQ(parse_dimension("n_layers", Json::array({1, 2, 3})).values.size(), 3U);
  const auto log = parse_dimension("lr", "loguniform(1e-5, 1e-2)");
  EXPECT_EQ(log.kind, Dimension::Kind::loguniform);
  EXPECT_EQ(log.low, 1e-5);
  EXPECT_EQ(log.high, 1e-2);
  EXPECT_EQ(parse_dimension("k", "int(1,4)").kind, Dimension::Kind::whole);
  for (const char* bad : {"", "[]", "uniform(1)", "uniform(2,1)", "loguniform(0,1)", "int(.5,2)",
                          "normal(0,1)", "1,1"}) {
    usage_of([&] { parse_dimension("x", bad); });
  }
}

TEST(TuneSpace, AGridIsWholeWithTheLastSettingFastest) {
  const auto trials =
      make_trials({parse_dimension("a", "1,2"), parse_dimension("b", "x,y,z")}, "grid", 20, 999);
  ASSERT_EQ(trials.size(), 6U);
  EXPECT_EQ(trials[1].settings[0].value, "1");
  EXPECT_EQ(trials[1].settings[1].value, "y");
  EXPECT_EQ(trials[3].settings[0].value, "2");
  EXPECT_EQ(trials[3].settings[1].value, "x");
  usage_of([] { make_trials({parse_dimension("a", "uniform(0,1)")}, "grid", 20, 999); });
}

TEST(TuneSpace, RandomTrialsStayInTheirRangesAndRepeat) {
  const std::vector<Dimension> space = {parse_dimension("lr", "loguniform(1e-5,1e-2)"),
                                        parse_dimension("n", "int(1,3)"),
                                        parse_dimension("c", "x,y")};
  const auto trials = make_trials(space, "random", 50, 7),
             again = make_trials(space, "random", 50, 7);
  ASSERT_EQ(trials.size(), 50U);
  std::set<std::string> whole;
  int below = 0;
  for (size_t t = 0; t < trials.size(); ++t) {
    EXPECT_EQ(settings_object(trials[t].settings), settings_object(again[t].settings));
    const double lr = std::stod(trials[t].settings[0].value.get<std::string>());
    EXPECT_GE(lr, 1e-5);
    EXPECT_LE(lr, 1e-2);
    below += lr < std::sqrt(1e-5 * 1e-2);
    whole.insert(trials[t].settings[1].value.get<std::string>());
  }
  EXPECT_GT(below, 12);  // half of the draws lie below the geometric mean
  EXPECT_LT(below, 38);
  EXPECT_EQ(whole, (std::set<std::string>{"1", "2", "3"}));
  // A small space is drawn from without replacement.
  EXPECT_EQ(make_trials({parse_dimension("c", "x,y,z")}, "random", 50, 7).size(), 3U);
}

TEST(Study, AFolderBelongsToOneStudy) {
  const TempFolder folder;
  const fs::path place = folder / "study";
  claim_study(place, "compare", "tessera compare", {{"rows", "A,B"}, {"seeds", {1, 2}}});
  claim_study(place, "compare", "again", {{"rows", "A,B"}, {"seeds", {1, 2}}});
  EXPECT_EQ(study_identity(place, "compare")["rows"], "A,B");
  const auto other =
      usage_of([&] { claim_study(place, "compare", "", {{"rows", "A,B"}, {"seeds", {1, 2, 3}}}); });
  EXPECT_NE(other.find("its seeds are [1,2], this command's [1,2,3]"), std::string::npos) << other;
  usage_of([&] { claim_study(place, "tune", "", {}); });
  usage_of([&] { study_identity(place, "tune"); });
  write_file(folder / "full.txt", "x");
  usage_of([&] { claim_study(folder / "full.txt", "compare", "", {}); });
}

TEST(Study, CostsComeFromTheRunsOwnLines) {
  const TempFolder folder;
  write_file(folder / "metrics.jsonl",
             R"({"event":"run","n_parameters":12})"
             "\n"
             R"({"event":"epoch","phase":"train","epoch":0,"time_s":2.0})"
             "\n"
             R"({"event":"epoch","phase":"valid","epoch":0,"time_s":0.5,"best":true})"
             "\n"
             R"({"event":"epoch","phase":"train","epoch":1,"time_s":4.0})"
             "\n"
             R"({"event":"epoch","phase":"valid","epoch":1,"time_s":0.5,"best":true})"
             "\n"
             R"({"event":"epoch","phase":"train","epoch":2,"time_s":3.0})"
             "\n"
             R"({"event":"epoch","phase":"valid","epoch":2,"time_s":0.7,"best":false})"
             "\n"
             R"({"event":"end"})"
             "\n");
  const Json cost = run_cost(folder / "", {{"time_s", {{"train", 10.0}, {"eval", 1.7}}},
                                           {"n_steps", 30},
                                           {"n_epochs", 3},
                                           {"peak_rss_mb", 7}});
  EXPECT_EQ(cost["n_parameters"], 12);
  EXPECT_EQ(cost["epoch_s"], 3.0);
  EXPECT_EQ(cost["step_ms"], 300.0);
  EXPECT_EQ(cost["eval_s"], 0.5);
  EXPECT_EQ(cost["best_s"], 1.0 + 2.0 + 0.5 + 4.0 + 0.5);  // a second of preparation first
  EXPECT_EQ(cost["peak_rss_mb"], 7);
}

TEST(Study, TablesArePadded) {
  EXPECT_EQ(markdown_table({{"a", "bb"}, {"é", "1"}}),
            "| a   |  bb |\n|-----|----:|\n| é   |   1 |\n");
  EXPECT_EQ(published_metric("ndcg@20"), "NDCG@20");
  EXPECT_EQ(published_metric("recall@20"), "Recall@20");
  EXPECT_EQ(published_metric("item_coverage@10"), "Item coverage@10");
  EXPECT_EQ(summary_cell(summary_of({.0564, .0558, .0570})), "0.0564 ± 0.0006");
  EXPECT_EQ(summary_cell(summary_of({.0564})), "0.0564");
  EXPECT_EQ(summary_cell(summary_of({})), "-");
}

}  // namespace
}  // namespace tessera

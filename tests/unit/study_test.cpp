#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/study/compare.h"
#include "tessera/study/tune.h"
#include "tessera/train/metrics_log.h"
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

TEST(CompareRows, ALabelIsOneLine) {
  for (const char* bad :
       {"a\tb=BPR", "a\x1b=BPR", "x=BPR,recs:a\tb.tsv", "BPR[reg_weight=\t0\n.1]"}) {
    EXPECT_NE(usage_of([&] { parse_rows(bad); }).find("a label is one line"), std::string::npos)
        << bad;
  }
  EXPECT_EQ(parse_rows("a|b=BPR")[0].label, "a|b");
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

TEST(TuneSpace, TextReadsBackToTheLastBit) {
  for (const char* typed :
       {"loguniform(1.23456789e-05, 0.0123456789012345)", "uniform(-0.1, 0.30000000000000004)",
        "int(1, 1234567)", "uniform(0, 1e300)"}) {
    const auto once = parse_dimension("x", typed),
               again = parse_dimension("x", dimension_text(once));
    EXPECT_EQ(once.kind, again.kind) << typed;
    EXPECT_EQ(once.low, again.low) << dimension_text(once);
    EXPECT_EQ(once.high, again.high) << dimension_text(once);
  }
  const auto list = parse_dimension("x", Json::array({0.1, 1e-7, 3}));
  EXPECT_EQ(dimension_text(list), "[0.1, 1e-07, 3]");
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
  claim_study(place, {"compare", "tessera compare", {{"rows", "A,B"}, {"seeds", {1, 2}}}});
  claim_study(place, {"compare", "again", {{"rows", "A,B"}, {"seeds", {1, 2}}}});
  EXPECT_EQ(read_study(place, "compare").identity["rows"], "A,B");
  const auto other = usage_of(
      [&] { claim_study(place, {"compare", "", {{"rows", "A,B"}, {"seeds", {1, 2, 3}}}}); });
  EXPECT_NE(other.find("its seeds are [1,2], this command's [1,2,3]"), std::string::npos) << other;
  usage_of([&] { claim_study(place, {"tune", "", {}}); });
  usage_of([&] { read_study(place, "tune"); });
  write_file(folder / "full.txt", "x");
  usage_of([&] { claim_study(folder / "full.txt", {"compare", "", {}}); });
}

TEST(Study, WhatAKillBeforeTheMarkLeftIsTaken) {
  const TempFolder folder;
  const fs::path place = folder / "study";
  fs::create_directories(place / "runs");
  write_file(place / ".study.json.99999999.tmp", "{");
  claim_study(place, {"tune", "tessera tune", {{"rows", 1}}});
  EXPECT_TRUE(fs::exists(place / "study.json"));
  // Runs without a study are somebody's.
  const fs::path full = folder / "full";
  fs::create_directories(full / "runs" / "t0");
  usage_of([&] { claim_study(full, {"tune", "", {{"rows", 1}}}); });
}

TEST(Study, TheCommandThatBeganItIsKept) {
  const TempFolder folder;
  const Json identity = {{"rows", 1}};
  EXPECT_EQ(claim_study(folder / "study", {"tune", "tessera tune -m BPR", identity}).command,
            "tessera tune -m BPR");
  EXPECT_EQ(
      claim_study(folder / "study", {"tune", "tessera tune --resume study", identity}).command,
      "tessera tune -m BPR");
}

TEST(Study, ChangedFilesAreNamed) {
  const TempFolder folder;
  const auto with = [](const char* hash) {
    return Json{{"rows", "A"}, {"features", {{"shop", {{"image", {{"sha256", hash}}}}}}}};
  };
  claim_study(folder / "study", {"compare", "tessera compare", with("abc")});
  try {
    claim_study(folder / "study", {"compare", "tessera compare", with("def")});
    FAIL() << "nothing was refused";
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::data);
    EXPECT_NE(std::string(e.what()).find(
                  R"(its features.shop.image.sha256 are "abc", this command's "def")"),
              std::string::npos)
        << e.what();
  }
  Json other = with("def");
  other["rows"] = "B";
  EXPECT_NE(usage_of([&] {
              claim_study(folder / "study", {"compare", "", other});
            }).find(R"(its rows are "A")"),
            std::string::npos);
}

TEST(Study, TheSplitInWords) {
  const auto words = [](const Json& about) { return DataCard::read(about).split; };
  EXPECT_EQ(words({{"split", {{"kind", "k-fold"}, {"folds", 5}, {"fold", 2}}}, {"seed", 999}}),
            "k-fold, fold 2, seed 999");
  EXPECT_EQ(words({{"split", {{"kind", "given"}}}, {"seed", 999}}), "given");
  EXPECT_EQ(words({{"split", {{"kind", "random"}, {"rounding", "mmrec"}}}, {"seed", 7}}),
            "random (mmrec), seed 7");
  EXPECT_EQ(words(Json()), "");
  EXPECT_EQ(words({{"split", 3}}), "");
}

TEST(Study, ControlCharactersStayOnOneLine) {
  EXPECT_EQ(escaped("a\tb\nc\x1b\x7f\\ é"), "a\\tb\\nc\\x1b\\x7f\\ é");
}

/// A result of compare() as its JSON.
Json small_json() {
  const auto row = [](const char* label, double gini, double recall) {
    return Json{{"label", label},
                {"model", "BPR"},
                {"seeds", {999}},
                {"test_looks", 1},
                {"settings", Json::object()},
                {"valid", Json::object()},
                {"test",
                 {{"recall@20", summary_json(summary_of({recall}))},
                  {"gini@20", summary_json(summary_of({gini}))}}},
                {"cost", {{"n_parameters", 1}, {"train_s", 1}}},
                {"failures", Json::array()},
                {"runs", {"a"}}};
  };
  Json table = {{"dataset", "shop"},
                {"split", "given"},
                {"split_sha256", "0123456789abcdef"},
                {"reported", "test"},
                {"metrics", {"recall@20", "gini@20"}},
                {"cold_metric", ""},
                {"test_metric", "recall@20"},
                {"valid_metric", "recall@20"},
                {"n_users", {5}},
                {"notes", {"two\nlines"}}};
  table["rows"] = {row("a|b", 0.9, 0.1), row("c", 0.8, 0.2)};
  for (auto& one : table["rows"]) {
    for (const char* key : {"epoch_s", "step_ms", "eval_s", "best_s", "peak_rss_mb"}) {
      one["cost"][key] = nullptr;
    }
  }
  Json comparison = {{"dataset", "shop"},
                     {"a", "a|b"},
                     {"b", "c"},
                     {"metric", "recall@20"},
                     {"n_users", 5},
                     {"mean_difference", 0.1},
                     {"bootstrap_95", {0.0, 0.2}},
                     {"p", {{"t", 0.5}, {"t over seeds", nullptr}}},
                     {"p_adjusted", {{"t", 0.5}, {"t over seeds", nullptr}}},
                     {"same_for_all_seeds", {"c"}}};
  return {{"kind", "compare"},
          {"tessera", "1.0.0"},
          {"command", "tessera compare -m 'BPR\n,c=BPR'"},
          {"folder", ""},
          {"protocol", "strict"},
          {"seeds", {999, 1000, 1001, 1002, 1003}},
          {"settings", Json::object()},
          {"tests", {"t"}},
          {"correction", "holm"},
          {"tables", Json::array({table})},
          {"n_comparisons", 1},
          {"corrected_over", {{"t", 1}, {"t over seeds", 0}}},
          {"comparisons", Json::array({comparison})},
          {"test_looks", 2}};
}

CompareResult small_result() { return CompareResult::read(small_json(), "result"); }

/// What reading a damaged document says; it must be exit 3.
std::string damage_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::data) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

TEST(CompareJson, GoesOutAndInWithoutLoss) {
  CompareResult result = small_result();
  result.asked_by = "tessera compare --resume x";
  ComparedRow& row = result.tables[0].rows[1];
  row.model.clear();
  row.settings.clear();
  row.lists = {"a.tsv", "b.tsv"};
  row.failures = {{7, "epoch 1: loss part 'bpr' is nan"}};
  row.selecting = "recall@20";
  row.selection = summary_of({0.25, Cost::kUnknown});
  row.best_epochs = {3, Cost::kUnknown};
  row.by_slice["cold"] = summary_of({0.125});
  result.comparisons[0].n_seeds = 5;
  const Json once = result.json();
  EXPECT_EQ(once["tables"][0]["rows"][1]["best_epochs"].dump(), "[3.0,null]");
  EXPECT_EQ(once["tables"][0]["rows"][1]["recs"].dump(), R"(["a.tsv","b.tsv"])");
  EXPECT_EQ(once["comparisons"][0]["p"]["t over seeds"], nullptr);
  EXPECT_EQ(CompareResult::read(once, "again").json().dump(), once.dump());
}

TEST(CompareJson, DamageIsNamed) {
  Json damaged = small_json();
  damaged["tables"][0]["rows"][1]["cost"]["train_s"] = "long";
  const auto words = damage_of([&] { CompareResult::read(damaged, "result.json"); });
  EXPECT_NE(words.find("result.json: shop: row 'c'"), std::string::npos) << words;
  EXPECT_NE(words.find("train_s"), std::string::npos) << words;
  damaged = small_json();
  damaged["comparisons"][0]["bootstrap_95"] = {1.0};
  damage_of([&] { CompareResult::read(damaged, "result.json"); });
  damaged = small_json();
  damaged.erase("tables");
  EXPECT_NE(damage_of([&] { CompareResult::read(damaged, "result.json"); }).find("'tables'"),
            std::string::npos);
  damage_of([] { CompareResult::read(Json::array(), "result.json"); });
}

TEST(TuneJson, GoesOutAndInWithoutLoss) {
  TuneResult result;
  result.model = "BPR";
  result.valid_metric = "recall@20";
  result.search = {{"n_negatives", "[1, 2]"}};
  result.seeds = {999, 1000};
  result.trials = {{{{"n_negatives", 1, "search"}}, 0.5, 3, 9, 1.5, ""},
                   {{{"n_negatives", 2, "search"}}, Cost::kUnknown, {}, {}, Cost::kUnknown, "nan"}};
  result.sensitivity = {{"n_negatives", "1", 1, 0.5, Cost::kUnknown}};
  EXPECT_EQ(result.json()["winner"].dump(), "{}");
  EXPECT_EQ(TuneResult::read(result.json(), "tune").json().dump(), result.json().dump());
  result.winner = 0;
  result.failures = {{1000, "nan"}};
  result.compare = small_result();
  const Json once = result.json();
  EXPECT_EQ(once["trials"][1]["state"], "nan");
  EXPECT_EQ(once["winner"]["score"], 0.5);
  EXPECT_EQ(TuneResult::read(once, "tune").json().dump(), once.dump());
  Json damaged = once;
  damaged["winner"]["trial"] = 2;
  EXPECT_NE(damage_of([&] { TuneResult::read(damaged, "tune"); }).find("winner is trial 2 of 2"),
            std::string::npos);
  damaged = once;
  damaged["trials"][0]["n_epochs"] = 1.5;
  EXPECT_NE(damage_of([&] { TuneResult::read(damaged, "tune"); }).find("trial 0"),
            std::string::npos);
}

TEST(CompareTable, KeepsItsLinesAndCells) {
  const CompareResult result = small_result();
  const auto markdown = compare_markdown(result);
  EXPECT_NE(markdown.find("| a\\|b "), std::string::npos) << markdown;
  EXPECT_NE(markdown.find("note: two\\nlines"), std::string::npos) << markdown;
  for (const auto& text :
       {markdown, compare_tsv(result), compare_latex(result), comparisons_tsv(result)}) {
    EXPECT_NE(text.find("command: tessera compare -m 'BPR\\n,c=BPR'"), std::string::npos) << text;
  }
}

TEST(CompareTable, MarksTheBestOnlyWhereLargerIsBetter) {
  const auto markdown = compare_markdown(small_result());
  EXPECT_NE(markdown.find("**0.2000**"), std::string::npos) << markdown;
  EXPECT_EQ(markdown.find("**0.9000**"), std::string::npos) << markdown;
  EXPECT_EQ(markdown.find("**0.8000**"), std::string::npos) << markdown;
}

TEST(CompareTable, SaysOverHowManyEachTestIsCorrected) {
  const auto markdown = compare_markdown(small_result());
  EXPECT_NE(
      markdown.find("corrected (holm) over the 1 comparisons of this table: M = 1 for t, M = 0 "
                    "for t over seeds; those left out have no value"),
      std::string::npos)
      << markdown;
  EXPECT_NE(markdown.find("the same for all of them: c."), std::string::npos) << markdown;
  EXPECT_NE(comparisons_tsv(small_result()).find("# t over seeds: corrected over 0 comparisons"),
            std::string::npos);
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
  RunResult result;
  result.time_s.train = 10.0;
  result.time_s.eval = 1.7;
  result.n_steps = 30;
  result.n_epochs = 3;
  result.peak_rss_mb = 7;
  const Cost cost = run_cost(folder / "", result);
  EXPECT_EQ(cost.n_parameters, 12);
  EXPECT_EQ(cost.epoch_s, 3.0);
  EXPECT_EQ(cost.step_ms, 300.0);
  EXPECT_EQ(cost.eval_s, 0.5);
  EXPECT_EQ(cost.best_s, 1.0 + 2.0 + 0.5 + 4.0 + 0.5);  // a second of preparation first
  EXPECT_EQ(cost.peak_rss_mb, 7);
}

TEST(MetricsLog, ReadsBackWhatIsWritten) {
  const TempFolder folder;
  const fs::path path = folder / "metrics.jsonl";
  TrainLine train;
  train.epoch = 4;
  train.losses = {{"total", 0.5}, {"bpr", 0.25}};
  train.learning_rate = 0.001;
  ValidLine valid;
  valid.epoch = 4;
  valid.metrics = {{"recall@20", 0.125}, {"auc", std::nan("")}};
  valid.score = 0.125;
  valid.best = true;
  const std::string first = line_json(train).dump() + "\n", second = line_json(valid).dump() + "\n";
  write_file(path, first + second.substr(0, 20));  // a line that a kill cut
  int64_t from = 0;
  const auto before = read_metrics_log(path, from);
  ASSERT_EQ(before.size(), 1U);
  EXPECT_EQ(from, static_cast<int64_t>(first.size()));
  EXPECT_TRUE(before[0].trains());
  EXPECT_EQ(before[0].losses, train.losses);
  EXPECT_EQ(before[0].value("lr"), 0.001);
  EXPECT_TRUE(std::isnan(before[0].value("recall@20")));
  write_file(
      path, first + second + "damaged\n[1]\n" + R"({"event":"gate","epoch":-1,"text":0.5})" + "\n");
  const auto more = read_metrics_log(path, from);
  ASSERT_EQ(more.size(), 2U);
  EXPECT_TRUE(more[0].validates());
  EXPECT_TRUE(more[0].best);
  EXPECT_EQ(more[0].epoch, 4);
  EXPECT_EQ(more[0].value("recall@20"), 0.125);
  EXPECT_EQ(more[1].event, "gate");
  EXPECT_EQ(more[1].epoch, -1);
  EXPECT_EQ(more[1].json["text"], 0.5);
  EXPECT_TRUE(read_metrics_log(folder / "none").empty());
}

TEST(Study, TablesArePadded) {
  EXPECT_EQ(markdown_table({{"a", "bb"}, {"é", "1"}}),
            "| a   |  bb |\n|-----|----:|\n| é   |   1 |\n");
  EXPECT_EQ(markdown_table({{"a|b", "c"}}), "| a\\|b |   c |\n|------|----:|\n");
  EXPECT_EQ(published_metric("ndcg@20"), "NDCG@20");
  EXPECT_EQ(published_metric("recall@20"), "Recall@20");
  EXPECT_EQ(published_metric("item_coverage@10"), "Item coverage@10");
  EXPECT_EQ(summary_cell(summary_of({.0564, .0558, .0570})), "0.0564 ± 0.0006");
  EXPECT_EQ(summary_cell(summary_of({.0564})), "0.0564");
  EXPECT_EQ(summary_cell(summary_of({})), "-");
}

}  // namespace
}  // namespace tessera

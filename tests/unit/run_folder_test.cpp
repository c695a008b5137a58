#include "tessera/train/run_folder.h"

#include <gtest/gtest.h>

#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

RunConfig config_of(const std::string& model) {
  return {model, "/data/shop", {{"epochs", 3, "flag"}, {"seed", 999, "default"}}};
}

RunResult result_of(const std::string& model, int64_t looks) {
  RunResult out;
  out.model = model;
  out.dataset = "shop";
  out.seed = 999;
  out.protocol = "strict";
  out.test = MetricValues{{"recall@20", 0.5}};
  out.n_epochs = 3;
  out.test_looks = looks;
  out.audit = {{"looks_at_test", looks}};
  return out;
}

std::set<std::string> files_in(const fs::path& folder) {
  std::set<std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    out.insert(entry.path().filename().string());
  }
  return out;
}

Json status_in(const fs::path& folder) { return read_json(folder / "status.json"); }

/// A run of `model` from its begin to its end, with all that a run may leave.
void whole_run(const fs::path& folder, const std::string& model,
               const std::map<std::string, std::string>& report_files = {}) {
  RunFolder run = RunFolder::begin(folder, config_of(model));
  for (const char* name : {"data.json", "env.json", "per_user.tsv", "recs_top50.tsv"}) {
    write_file(folder / name, "{}");
  }
  for (const char* name : {"model", "checkpoints/last", "tb"}) {
    fs::create_directories(folder / name);
  }
  run.log().info("at work");
  run.write_report_files(report_files);
  run.finish(result_of(model, 1));
}

TEST(RunFolder, TellsItsStateFromBeginToEnd) {
  const TempFolder at;
  const fs::path folder = at / "run";
  {
    RunFolder run = RunFolder::begin(folder, config_of("BM3"));
    EXPECT_TRUE(is_run_folder(folder));
    EXPECT_EQ(status_in(folder).dump(), R"({"state":"running","exit_code":null,"epoch":-1})");
    run.running(1);
    EXPECT_EQ(status_in(folder)["epoch"], 1);
    EXPECT_FALSE(run_finished(folder));
    run.finish(result_of("BM3", 1));
    EXPECT_TRUE(run_finished(folder));
    EXPECT_EQ(status_in(folder).dump(), R"({"state":"finished","exit_code":0,"epoch":2})");
  }
  EXPECT_FALSE(fs::exists(folder / FolderLock::kFile));
  EXPECT_EQ(read_results(folder).value("test", "recall@20"), 0.5);
  const RunConfig back = read_run_config(folder);
  EXPECT_EQ(back.model, "BM3");
  ASSERT_EQ(back.settings.size(), 2u);
  ASSERT_EQ(back.given().size(), 1u);
  EXPECT_EQ(back.given()[0].name, "epochs");
  EXPECT_EQ(back.json(), config_of("BM3").json());
}

TEST(RunFolder, ANewRunTakesAwayWhatTheLastOneWroteAndNothingElse) {
  const TempFolder at;
  const fs::path folder = at / "run";
  whole_run(folder, "R2MR", {{"quality.json", "{}"}, {"quality.tsv", "item\n"}});
  EXPECT_TRUE(fs::exists(folder / "quality.tsv"));
  write_file(folder / "notes.txt", "mine");
  fs::create_directories(folder / "mine");
  RunFolder run = RunFolder::begin(folder, config_of("BM3"));
  EXPECT_EQ(files_in(folder), (std::set<std::string>{".lock", "config.resolved.json", "mine",
                                                     "notes.txt", "status.json"}));
  EXPECT_EQ(read_run_config(folder).model, "BM3");
}

TEST(RunFolder, WhatStatusNamesOutsideTheFolderStays) {
  const TempFolder at;
  const fs::path folder = at / "run";
  whole_run(folder, "R2MR");
  at.file("precious.txt", "mine");
  Json status = status_in(folder);
  status["report_files"] = {"../precious.txt", (at / "precious.txt").string(), "..", ".", "", 5};
  write_json(folder / "status.json", status);
  RunFolder run = RunFolder::begin(folder, config_of("BM3"));
  EXPECT_TRUE(fs::exists(at / "precious.txt"));
}

TEST(RunFolder, RefusesWhatIsNoRunBeforeItTouchesAnything) {
  const TempFolder at;
  const fs::path folder = at / "shop";
  at.file("shop/results.json", "{}");
  at.file("shop/model/model.json", "{}");
  EXPECT_EQ(error_of([&] { RunFolder::begin(folder, config_of("BM3")); }),
            "2: " + folder.string() + " is not empty and holds no run: choose another folder");
  EXPECT_EQ(files_in(folder), (std::set<std::string>{"model", "results.json"}));
  const fs::path file = at.file("file", "");
  EXPECT_EQ(error_of([&] { RunFolder::begin(file, config_of("BM3")); }),
            "2: " + file.string() + " is a file");
  EXPECT_EQ(error_of([&] { read_run_config(folder); }),
            "3: " + folder.string() + " is no run folder");
}

// Killed before it had written its first file.
TEST(RunFolder, TakesAFolderThatWasOnlyBegun) {
  const TempFolder at;
  at.file("run/.lock", "process 1 on host gone\n");
  at.file("run/.config.resolved.json.1.tmp", "{");
  const RunFolder run = RunFolder::begin(at / "run", config_of("BM3"));
  EXPECT_TRUE(is_run_folder(at / "run"));
}

TEST(RunFolder, HasOneWriter) {
  const TempFolder at;
  const fs::path folder = at / "run";
  whole_run(folder, "BM3");
  const RunFolder run = RunFolder::begin(folder, config_of("BM3"));
  const auto files = files_in(folder);
  for (const std::string& error :
       {error_of([&] { RunFolder::begin(folder, config_of("BPR")); }),
        error_of([&] { RunFolder::resume(folder, config_of("BM3")); })}) {
    EXPECT_EQ(error.rfind("2: " + folder.string() + " is in use by process ", 0), 0u) << error;
  }
  EXPECT_EQ(files_in(folder), files);
  EXPECT_EQ(read_run_config(folder).model, "BM3");
}

TEST(RunFolder, ARunThatGoesOnHasNoResultUntilItEnds) {
  const TempFolder at;
  const fs::path folder = at / "run";
  whole_run(folder, "R2MR", {{"quality.tsv", "item\n"}});
  EXPECT_EQ(count_test_look(folder), 2);
  EXPECT_EQ(read_results(folder).audit["looks_at_test"], 2);
  {
    RunFolder run = RunFolder::resume(folder, config_of("R2MR"));
    EXPECT_EQ(run.test_looks(), 2);
    for (const char* name : {"results.json", "results.tsv", "per_user.tsv", "recs_top50.tsv",
                             "model", "quality.tsv"}) {
      EXPECT_FALSE(fs::exists(folder / name)) << name;
    }
    EXPECT_TRUE(fs::exists(folder / "checkpoints" / "last"));
    run.running(7);
    run.failed(std::make_exception_ptr(RunError(Exit::interrupted, "interrupted")));
  }
  EXPECT_FALSE(run_finished(folder));
  const Json status = status_in(folder);
  EXPECT_EQ(status["state"], "interrupted");
  EXPECT_EQ(status["exit_code"], 4);
  EXPECT_EQ(status["epoch"], 7);
  EXPECT_EQ(status["error"], "interrupted");
  // Looks are counted on while there is no result to hold them.
  EXPECT_EQ(count_test_look(folder), 3);
  RunFolder run = RunFolder::resume(folder, config_of("R2MR"));
  EXPECT_EQ(run.test_looks(), 3);
}

// A run of an earlier version that went on and was stopped: its old results are still there.
TEST(RunFolder, ResultsThatStatusContradictsAreNoEnd) {
  const TempFolder at;
  whole_run(at / "run", "BM3");
  for (const char* state : {"running", "interrupted", "failed"}) {
    write_json(at / "run/status.json", {{"state", state}, {"exit_code", 4}, {"epoch", 9}});
    EXPECT_FALSE(run_finished(at / "run")) << state;
  }
  fs::remove(at / "run/status.json");
  EXPECT_TRUE(run_finished(at / "run"));
  at.file("run/status.json", "{");
  EXPECT_EQ(error_of([&] { run_finished(at / "run"); }).substr(0, 2), "3:");
}

TEST(RunFolder, AFailureIsToldInStatusAndLog) {
  const TempFolder at;
  RunFolder run = RunFolder::begin(at / "run", config_of("BM3"));
  run.failed(std::make_exception_ptr(std::runtime_error("the sky fell")));
  EXPECT_EQ(status_in(at / "run").dump(),
            R"({"state":"failed","exit_code":1,"epoch":-1,"error":"the sky fell"})");
  EXPECT_NE(read_file(at / "run/train.log").find("ERROR the sky fell"), std::string::npos);
}

}  // namespace
}  // namespace tessera

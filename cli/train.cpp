#include <cmath>

#include "cli/cli.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/study/run.h"

namespace tessera::cli {
namespace {

std::string table(const RunResult& result) {
  std::string out = fmt::format(
      "{} on {}, protocol {}, seed {}, {} of {} users, best epoch {} by valid {}\n", result.model,
      result.dataset, protocol_words(result.protocol), result.seed, result.test ? "test" : "valid",
      result.n_users, result.selection.epoch, result.selection.metric);
  if (const MetricValues* metrics = result.metrics(result.reported())) {
    for (const auto& [name, value] : *metrics) {
      out += fmt::format("{:<14} {}\n", name,
                         std::isfinite(value) ? fmt::format("{:.4f}", value) : "-");
    }
  }
  for (const auto& note : result.notes()) out += fmt::format("note: {}\n", note);
  return out;
}

}  // namespace

void add_train(CLI::App& app, Common& common) {
  struct Flags {
    std::string resume;
    bool test_curve = false, tensorboard = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(
      app, common, "train", "train one model on a dataset folder; any setting is also a flag", true,
      [&common, flags] {
        RunRequest request;
        for (auto& setting : gather_settings(common)) {
          // RecBole's and MMRec's files name model and dataset beside the settings.
          if (setting.name == "model" || setting.name == "dataset") {
            const auto value = setting.value.is_string() ? setting.value.get<std::string>() : "";
            if (setting.name == "model") request.model = value;
            if (setting.name == "dataset") request.dataset = value;
          } else {
            request.settings.push_back(std::move(setting));
          }
        }
        if (flags->test_curve) request.settings.push_back({"test_curve", true, "flag"});
        if (flags->tensorboard) request.settings.push_back({"tensorboard", true, "flag"});
        if (!common.model.empty()) request.model = common.model;
        if (!common.datasets.empty()) request.dataset = common.dataset();
        request.resume = flags->resume;
        if (flags->resume.empty() && request.dataset.empty()) request.dataset = common.dataset();
        request.output = common.output;
        request.command = common.command;
        request.log = make_log(common);
        request.stop_requested = interrupted;
        request.progress = progress_bar(common);
        const RunOutcome outcome = run(request);
        if (common.json) {
          Json out = outcome.result.json();
          out["run"] = outcome.folder.string();
          print_json(out);
        } else {
          print(table(outcome.result) + "run folder: " + outcome.folder.string());
        }
      });
  verb->add_option("--resume", flags->resume, "go on with a run folder");
  verb->add_flag("--tensorboard", flags->tensorboard,
                 "also write the curves as TensorBoard's, tb/");
  verb->add_flag(
      "--test-curve", flags->test_curve,
      "rank test every epoch into test_curve.jsonl: a diagnostic, nothing selects by it");
}

}  // namespace tessera::cli

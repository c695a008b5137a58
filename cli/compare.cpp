#include "tessera/study/compare.h"

#include <memory>

#include "cli/cli.h"
#include "cli/study_flags.h"

namespace tessera::cli {
namespace {

struct Flags {
  StudyFlags study;
  std::vector<std::string> runs;
  bool ablations = false;
  std::string tests = "t,wilcoxon", correct = "holm", format = "md", test_metric, against;
};

using Renderer = std::string (*)(const CompareResult&);

std::vector<Renderer> renderers(const std::string& typed) {
  static const std::vector<std::pair<std::string, Renderer>> known = {
      {"md", compare_markdown}, {"latex", compare_latex}, {"tsv", compare_tsv}};
  std::vector<Renderer> out;
  std::vector<std::string> names;
  for (const auto& [name, renderer] : known) names.push_back(name);
  for (const auto& wanted : split_list(typed)) {
    const size_t before = out.size();
    for (const auto& [name, renderer] : known) {
      if (squeezed(name) == squeezed(wanted)) out.push_back(renderer);
    }
    if (out.size() == before) {
      throw usage_error("no format '{}'{}: formats are {}", printable(wanted),
                        did_you_mean(wanted, names), fmt::join(names, ", "));
    }
  }
  return out;
}

void run_compare(const Common& common, const Flags& flags) {
  CompareRequest request;
  const auto formats = renderers(flags.format);
  request.runs = flags.runs;
  request.ablations = flags.ablations;
  request.tests = split_list(flags.tests);
  request.correct = flags.correct;
  request.test_metric = flags.test_metric;
  request.against = flags.against;
  request.output = common.output;
  request.resume = flags.study.resume;
  request.rows = common.model;
  request.datasets = common.datasets;
  take_study_settings(common, request.settings, request.rows, request.datasets);
  if (request.resume.empty() && request.runs.empty()) {
    request.seeds = choose_seeds(flags.study.seeds, 3, 1, request.settings);
  } else if (!flags.study.seeds.empty()) {
    throw usage_error("--seeds belongs to a new comparison: leave it out");
  }
  request.around = surroundings(common);
  const CompareResult result = compare(request);
  if (common.json) {
    print_json(result.json());
  } else {
    std::string text;
    for (const auto& render : formats) text += (text.empty() ? "" : "\n") + render(result);
    if (!result.folder.empty() && flags.format == "md") {
      text += "\nstudy folder: " + result.folder + "\n";
    }
    print(text);
  }
  for (const auto& table : result.tables) {
    for (const auto& row : table.rows) {
      if (row.failures.empty()) continue;
      throw RunError(Exit::diverged,
                     fmt::format("{} of the runs of '{}' on '{}' diverged: its row has fewer seeds",
                                 row.failures.size(), row.label, table.dataset));
    }
  }
}

}  // namespace

void add_compare(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(
      app, common, "compare",
      "models, variants and anyone's lists side by side: means over seeds, costs, paired tests",
      true, [&common, flags] { run_compare(common, *flags); });
  verb->get_option("--model")
      ->description("rows: [label=]NAME[key=value,..] or label=recs:FILE+FILE, between commas")
      ->multi_option_policy(CLI::MultiOptionPolicy::Join);
  verb->get_option("--dataset")->description("dataset folder (repeatable: one table each)");
  verb->add_option("runs", flags->runs, "or finished run folders, [label=]RUN");
  verb->add_flag("--ablations", flags->ablations,
                 "models named without settings bring their registered ablation set");
  add_study_flags(*verb, flags->study, "3");
  verb->add_option("--test", flags->tests, "paired tests, default t,wilcoxon");
  verb->add_option("--correct", flags->correct, "holm (default), bonferroni or fdr");
  verb->add_option("--test-metric", flags->test_metric,
                   "metric of the tests (default the one that selects)");
  verb->add_option("--against", flags->against,
                   "row that the others are tested against (default the first); all: every pair");
  verb->add_option("--format", flags->format, "printed: md (default), latex, tsv; -o gets all");
}

}  // namespace tessera::cli

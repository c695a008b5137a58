#include "tessera/study/tune.h"

#include <memory>

#include "cli/cli.h"
#include "cli/study_flags.h"

namespace tessera::cli {
namespace {

struct Flags {
  StudyFlags study;
  std::vector<std::string> search;
  std::string sampler;
  int64_t trials = 0;
};

void run_tune(const Common& common, const Flags& flags, bool trials_typed) {
  TuneRequest request;
  request.model = common.model;
  request.search = flags.search;
  request.sampler = flags.sampler;
  request.trials = flags.trials;
  if (trials_typed && flags.trials < 1) {
    throw usage_error("--trials must be at least 1, got {}", flags.trials);
  }
  request.output = common.output;
  request.resume = flags.study.resume;
  std::vector<std::string> datasets = common.datasets;
  take_study_settings(common, request.settings, request.model, datasets);
  if (datasets.size() > 1)
    throw usage_error("tune searches on one dataset, {} given", datasets.size());
  if (!datasets.empty()) request.dataset = datasets[0];
  if (request.resume.empty()) {
    request.seeds = choose_seeds(flags.study.seeds, 3, 0, request.settings, &request.trial_seed);
  } else if (!flags.study.seeds.empty()) {
    throw usage_error("--seeds belongs to a new search: leave it out");
  }
  request.around = surroundings(common);
  const TuneResult result = tune(request);
  if (common.json) {
    print_json(result.json());
  } else {
    print(tune_markdown(result) + "\nstudy folder: " + result.folder);
  }
  if (!result.failures.empty()) {
    throw RunError(
        Exit::diverged,
        fmt::format(
            "{} of the {} runs of the winner, trial {}, diverged: its table has fewer seeds",
            result.failures.size(), result.seeds.size(), *result.winner));
  }
}

}  // namespace

void add_tune(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  auto trials = std::make_shared<CLI::Option*>(nullptr);
  CLI::App* verb =
      add_verb(app, common, "tune",
               "search settings on valid; then the winner's seeds look at test once each", true,
               [&common, flags, trials] { run_tune(common, *flags, (*trials)->count() > 0); });
  verb->add_option("--search", flags->search,
                   "name=1,2 or uniform(a,b), loguniform(a,b), int(a,b) (repeatable; default the "
                   "model's own); or search: in "
                   "a -c file, or MMRec's hyper_parameters:")
      ->allow_extra_args(false);
  *trials = verb->add_option("--trials", flags->trials, "of a random search, 20");
  verb->add_option("--sampler", flags->sampler,
                   "grid (default where all values are listed) or random");
  add_study_flags(*verb, flags->study, "3, of the winner; 0: search only");
}

}  // namespace tessera::cli

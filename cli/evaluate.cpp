#include <memory>

#include "cli/cli.h"
#include "tessera/base/files.h"
#include "tessera/study/evaluate_run.h"

namespace tessera::cli {
namespace {

struct Flags {
  std::string target, recs, split;
  std::vector<std::string> eval_mask;
  std::string ndcg_ideal = "capped";
  int64_t sampled = 0;
  int64_t sampled_seed = SampledOptions{}.seed;
  bool slices = false, per_user = false, shuffle = false;
};

EvaluateRequest request_of(const Common& common, const Flags& flags) {
  EvaluateRequest out;
  if (!flags.recs.empty() && !flags.target.empty()) {
    throw usage_error("evaluate takes a run or bundle, or --recs FILE with -d, got '{}' and --recs",
                      printable(flags.target));
  }
  if (flags.recs.empty() && flags.target.empty()) {
    throw usage_error(
        "nothing to evaluate: give a run or bundle folder, or --recs FILE -d DATASET");
  }
  if (!flags.recs.empty() || common.datasets.size() > 1) common.dataset();  // wants exactly one
  if (flags.sampled < 0 || (flags.sampled > 0 && !flags.recs.empty())) {
    throw usage_error("--sampled wants a run or bundle and a number of candidates, like 1000");
  }
  if (flags.sampled_seed < 0) throw usage_error("--sampled-seed: must be at least 0");
  if (flags.ndcg_ideal != "capped" && flags.ndcg_ideal != "all") {
    throw usage_error("--ndcg-ideal '{}': wanted capped or all", printable(flags.ndcg_ideal));
  }
  if (flags.shuffle && !flags.recs.empty()) {
    throw usage_error("--shuffle-histories wants a run or bundle");
  }
  out.target = flags.target;
  out.lists = flags.recs;
  if (!common.datasets.empty()) out.dataset = common.datasets[0];
  out.settings = gather_settings(common);
  out.split = flags.split;
  out.without_parts = flags.eval_mask;
  out.slices = flags.slices;
  out.per_user = flags.per_user;
  out.shuffle_histories = flags.shuffle;
  if (flags.sampled > 0) {
    out.sampled.emplace();
    out.sampled->total = flags.sampled;
    out.sampled->ideal_all = flags.ndcg_ideal == "all";
    out.sampled->seed = static_cast<uint64_t>(flags.sampled_seed);
  }
  out.log = make_log(common);
  out.stop_requested = interrupted;
  return out;
}

void run_evaluate(const Common& common, const Flags& flags) {
  const EvaluateRequest request = request_of(common, flags);
  if (!common.output.empty()) check_writable(common.output);
  const EvaluateResult result = evaluate_run(request);
  for (const auto& note : result.notes()) request.log.warn("{}", note);
  const std::string rows = flags.per_user ? per_user_tsv(result.evaluation, *result.data) : "";
  if (!rows.empty() && !common.output.empty()) write_file(common.output, rows);
  if (common.json) {
    print_json(result.json());
  } else {
    print(evaluate_text(result) + (common.output.empty() && !rows.empty() ? "\n" + rows : ""));
  }
}

}  // namespace

void add_evaluate(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, common, "evaluate",
                            "metrics of a run or bundle folder, or of anyone's file of lists", true,
                            [&common, flags] { run_evaluate(common, *flags); });
  verb->add_option("run", flags->target, "run or bundle folder");
  verb->add_option("--recs", flags->recs,
                   "file of lists instead: lines of user, item, score; or with a header");
  verb->add_option("--split", flags->split, "valid or test (default test where it has rows)");
  verb->add_option("--eval-mask", flags->eval_mask, "parts left out when ranking, a,b (PAMD)")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb->add_option("--sampled", flags->sampled,
                   "also rank held-out items among so many drawn candidates, like 1000");
  verb->add_option("--sampled-seed", flags->sampled_seed,
                   "of --sampled: draws the candidates, the same for every run (999)");
  verb->add_option("--ndcg-ideal", flags->ndcg_ideal, "of --sampled: capped or all");
  verb->add_flag("--shuffle-histories", flags->shuffle,
                 "also rank with each user's history in random order");
  verb->add_flag("--slices", flags->slices, "also cold, tail, sparse and missing-modality slices");
  verb->add_flag("--per-user", flags->per_user, "also one row a user, to -o where given");
}

}  // namespace tessera::cli

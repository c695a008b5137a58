#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/log.h"
#include "tessera/eval/sampled.h"
#include "tessera/train/results.h"

namespace tessera {

/// What is evaluated, by which settings, and what is asked of it.
struct EvaluateRequest {
  std::filesystem::path target;            ///< a run or bundle folder, or
  std::string lists;                       ///< a file of anyone's lists
  std::filesystem::path dataset;           ///< of a bundle or of lists; a run names its own
  Settings settings;                       ///< in rising precedence, over those of the training
  std::string split;                       ///< valid or test; empty: test where it has rows
  std::vector<std::string> without_parts;  ///< parts that the model leaves out
  bool slices = false, per_user = false;
  std::optional<SampledOptions> sampled;
  bool shuffle_histories = false;
  Log log;
  std::function<bool()> stop_requested = [] { return false; };
};

/// A metric with every history in random order.
struct Shuffled {
  std::string metric;
  double value = 0;   ///< NaN where undefined
  double change = 0;  ///< of the value in order, as a share of it; NaN where that is not above 0
};

struct EvaluateResult {
  std::string name;  ///< the model's, or the file of lists
  bool lists = false;
  std::optional<int64_t> seed;  ///< none where nothing was trained
  std::shared_ptr<const Dataset> data;
  Evaluation evaluation;
  std::string protocol;
  std::optional<SampledResult> sampled;
  std::vector<Shuffled> shuffled;  ///< empty where not asked for

  std::vector<std::string> notes() const { return audit_notes(evaluation.audit); }
  Json json() const;
};

/// Evaluates a run, a bundle or lists; a look at test of a run is counted in its folder. Exit 2 for
/// what the subject cannot do, exit 3 for what is no run, bundle or list, or of other rows. A stop
/// leaves nothing behind.
EvaluateResult evaluate_run(const EvaluateRequest& request);

/// For people: metrics down, slices across, the protocol beside every row; then the audit and what
/// else was asked for.
std::string evaluate_text(const EvaluateResult& result);

}  // namespace tessera

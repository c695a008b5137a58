#include "tessera/eval/protocol.h"

#include <cmath>

#include "tessera/base/error.h"
#include "tessera/eval/protocol_words.h"

namespace tessera {
namespace {

std::vector<Protocol> make_protocols() {
  using Mask = Protocol::Mask;
  Protocol strict;
  strict.name = "strict";

  Protocol mmrec;
  mmrec.name = "mmrec";
  mmrec.mask_test = Mask::train;
  mmrec.average_cold_users = false;
  mmrec.drop_repeats = false;
  mmrec.sequential_sees_valid = false;
  mmrec.topk = {5, 10, 20, 50};
  mmrec.round4 = true;
  mmrec.patience_plus_one = true;

  Protocol recbole_seq;
  recbole_seq.name = "recbole-seq";
  recbole_seq.mask_valid = recbole_seq.mask_test = Mask::none;
  recbole_seq.drop_repeats = false;
  recbole_seq.valid_metric = "mrr@10";
  recbole_seq.topk = {10};
  recbole_seq.round4 = true;
  recbole_seq.tie_improves = true;
  recbole_seq.patience_plus_one = true;
  recbole_seq.patience = 10;
  recbole_seq.epochs = 300;
  recbole_seq.one_target = true;

  Protocol seq_mask = strict;
  seq_mask.name = "seq-mask";
  seq_mask.valid_metric = "ndcg@10";
  seq_mask.topk = {5, 10, 20};
  seq_mask.patience = 10;
  seq_mask.epochs = 200;
  seq_mask.drop_repeats = false;  // a target that repeats an item of the history is a miss
  seq_mask.one_target = true;

  // Nothing is masked, so that a repeated target can be found.
  Protocol seq_none = seq_mask;
  seq_none.name = "seq-none";
  seq_none.mask_valid = seq_none.mask_test = Mask::none;

  // Checks KDSR's released log through --test-curve (kdsr section 8); no table takes numbers of it.
  Protocol ratio20 = seq_none;
  ratio20.name = "ratio20";
  ratio20.one_target = false;
  ratio20.every_position = true;
  ratio20.topk = {5, 20};
  ratio20.epochs = 100;

  return {strict, mmrec, recbole_seq, seq_mask, seq_none, ratio20};
}

const Protocol* known(const std::string& name) {
  for (const Protocol& protocol : protocols()) {
    if (squeezed(protocol.name) == squeezed(name)) return &protocol;
  }
  return nullptr;
}

}  // namespace

std::string seen_words(const Protocol& protocol) {
  using Mask = Protocol::Mask;
  switch (protocol.mask_test) {
    case Mask::none:
      return "none";
    case Mask::train:
      return "mask (train only)";
    case Mask::train_valid:
      return "mask";
  }
  return "";
}

const std::vector<Protocol>& protocols() {
  static const std::vector<Protocol> all = make_protocols();
  return all;
}

const Protocol& find_protocol(const std::string& name) {
  if (const Protocol* protocol = known(name)) return *protocol;
  std::vector<std::string> names;
  for (const Protocol& protocol : protocols()) names.push_back(protocol.name);
  throw usage_error("no protocol '{}'{}: protocols are {}", printable(name),
                    did_you_mean(name, names), fmt::join(names, ", "));
}

std::string seen_words(const std::string& name) {
  const Protocol* protocol = known(name);
  return protocol != nullptr ? seen_words(*protocol) : "";
}

std::string protocol_words(const std::string& name) {
  const std::string seen = seen_words(name);
  const bool says = seen.empty() || name == "seq-" + seen;
  return says ? name : name + ", seen " + seen;
}

void refuse_in_tables(const Protocol& protocol, const std::string& verb) {
  if (!protocol.every_position) return;
  throw usage_error(
      "{} takes no protocol '{}': it checks a released log through `test_curve`, its numbers stand "
      "in no table; use it with 'tessera train'",
      verb, protocol.name);
}

bool EarlyStopping::add(int64_t epoch, double score) {
  // std::nearbyint rounds half to even in the default rounding mode.
  const double compared = protocol_->round4 ? std::nearbyint(score * 1e4) / 1e4 : score;
  const bool improved =
      best_epoch_ < 0 || compared > best_ || (protocol_->tie_improves && compared == best_);
  if (!improved) {
    ++misses_;
    return false;
  }
  best_ = compared;
  best_score_ = score;
  best_epoch_ = epoch;
  misses_ = 0;
  return true;
}

}  // namespace tessera

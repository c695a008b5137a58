#include "tessera/model/model.h"

#include <stdexcept>

#include "tessera/base/error.h"

namespace tessera {

void TrainSettings::describe(Fields& f) {
  f.add("epochs", epochs, "epochs at most", at_least(1));
  f.add("train_batch_size", train_batch_size, "examples a step", at_least(1));
  f.add("eval_batch_size", eval_batch_size, "users ranked at once", at_least(1));
  f.add("learning_rate", learning_rate, "Adam's learning rate", at_least(0));
  f.add("weight_decay", weight_decay, "Adam's weight decay, added to the gradient", at_least(0));
  f.add("clip_grad_norm", clip_grad_norm, "gradients are scaled to this norm; 0: never",
        at_least(0));
  f.add("stopping_step", stopping_step,
        "evaluations without improvement before the end; -1: the protocol's", at_least(-1));
  f.add("eval_step", eval_step, "epochs between evaluations", at_least(1));
  f.add("seed", seed, "fixes initial values, shuffling, negatives and dropout", at_least(0));
  f.add("time_limit", time_limit, "minutes before the run ends in good order; 0: none",
        at_least(0));
  f.choice("protocol", protocol, "what is masked, who is averaged, how an epoch is chosen",
           {"strict", "mmrec", "recbole-seq", "seq-mask", "seq-none", "ratio20"});
  f.add("valid_metric", valid_metric, "the metric that selects; empty: the protocol's");
  f.list("metrics", metrics, "what is reported; empty: recall ndcg precision hit map mrr");
  f.list("topk", topk, "cutoffs K; empty: the protocol's", at_least(1));
  f.list("modalities", modalities, "the features a model sees; empty: all that no model made");
  f.list("permute", permute, "modalities shuffled among the items that have one; all: every one");
  f.add("fold", fold, "test fold of a k-fold split; -1: none", at_least(-1));
  f.add("checkpoint", checkpoint, "epochs between checkpoints", at_least(1));
  f.add("threads", threads, "0: all cores", between(0, 4096));
  f.add("device", device, "cpu, or reference: plain tensor operations, to check the kernels by");
  f.add("test_curve", test_curve, "ranks test every epoch into test_curve.jsonl, a diagnostic");
  f.add("tensorboard", tensorboard,
        "the curves of metrics.jsonl also as TensorBoard reads them, in tb/");
  f.add("sparse_max", sparse_max, "train rows of a sparse user, at most", at_least(0));
  f.add("tail_ratio", tail_ratio, "share of items in tail_percentage's tail; above 1: train rows",
        above(0));
  f.choice("map_norm", map_norm, "divisor of map: min(K, relevant) or relevant",
           {"min", "relevant"});
  f.alias("lr", {"learning_rate"});
}

torch::Device TrainSettings::on() const {
  if (device == "cpu" || reference()) return torch::kCPU;
  throw usage_error("device '{}' is not available: this build computes on cpu and reference{}",
                    printable(device), did_you_mean(device, {"cpu", "reference"}));
}

int64_t Batch::size() const {
  if (users.defined()) return users.size(0);
  return rows.n_rows();
}

Batch Batch::to(torch::Device device) const {
  Batch out = *this;
  for (auto* t :
       {&out.users, &out.positives, &out.negatives, &out.distinct_users, &out.distinct_items,
        &out.user_inverse, &out.positive_inverse, &out.negative_inverse}) {
    if (t->defined()) *t = t->to(device);
  }
  return out;
}

Model::Model(const Context& context)
    : data_(context.data), random_(context.random), train_(context.train), log_(context.log) {}

Loss Model::loss(const Batch&) {
  throw std::logic_error("a model without parameter groups has no loss");
}

void Model::train(bool on) {
  training_ = on;
  forget();
}

torch::Tensor& Model::parameter(const std::string& name, torch::Tensor initial, Role role) {
  initial = initial.to(train_.on());
  initial.set_requires_grad(true);
  parameters_.push_back({name, std::move(initial), role});
  return parameters_.back().value;
}

RowTable& Model::table(const std::string& name, torch::Tensor initial, Role role) {
  tables_.push_back({name, RowTable(initial.to(train_.on())), role});
  return tables_.back().value;
}

std::vector<ParameterGroup> Model::parameter_groups() {
  if (parameters_.empty() && tables_.empty()) return {};
  ParameterGroup group;
  group.name = "all";
  for (auto& p : parameters_) group.tensors.emplace_back(p.name, &p.value);
  for (auto& t : tables_) group.tables.emplace_back(t.name, &t.value);
  if (train_.weight_decay > 0) {
    group.weight_decay = train_.weight_decay;
    group.decay = AdamOptions::Decay::gradient;
  }
  return {group};
}

void Model::state(State& state) {
  for (auto& p : parameters_) state.add(p.name, p.value, p.role);
  for (auto& t : tables_) state.add(t.name, t.value, t.role);
}

std::array<std::pair<const char*, bool*>, 4> flags_of(Abilities& abilities) {
  return {{{"uses_features", &abilities.uses_features},
           {"score_reads_features", &abilities.score_reads_features},
           {"ranks_cold_items", &abilities.ranks_cold_items},
           {"takes_histories", &abilities.takes_histories}}};
}

const Vectors& FactorModel::remembered() {
  if (!remembered_.users.defined()) {
    const torch::NoGradGuard no_grad;
    remembered_ = vectors();
    remembered_.users = remembered_.users.contiguous();
    remembered_.items = remembered_.items.contiguous();
  }
  return remembered_;
}

torch::Tensor FactorModel::item_vectors() { return remembered().items; }

torch::Tensor FactorModel::user_vectors(const Queries& queries) {
  const Vectors& all = remembered();
  const int64_t n = queries.size(), dim = all.users.size(1);
  if (!queries.histories.defined()) return all.users.index_select(0, queries.users);
  torch::Tensor out = torch::zeros({n, dim}, all.users.options());
  for (int64_t row = 0; row < n; ++row) {
    const int64_t user = queries.users.defined() ? queries.users[row].item<int64_t>() : -1;
    const int64_t begin = queries.histories.offsets[row].item<int64_t>();
    const int64_t end = queries.histories.offsets[row + 1].item<int64_t>();
    if (user >= 0 && (begin == end || !data_.train.of(user).empty())) {
      out[row].copy_(all.users[user]);
    } else if (begin < end) {
      const auto items = queries.histories.items.slice(0, begin, end).to(torch::kInt64);
      out[row].copy_(all.items.index_select(0, items).mean(0));
    }
  }
  return out;
}

torch::Tensor FactorModel::score(const Queries& queries) {
  return user_vectors(queries).matmul(item_vectors().t());
}

}  // namespace tessera

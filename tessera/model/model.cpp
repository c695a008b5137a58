#include "tessera/model/model.h"

#include <cmath>
#include <stdexcept>

#include "tessera/base/error.h"
#include "tessera/ops/device.h"

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
  f.add("checkpoint", checkpoint,
        "epochs between checkpoints; 0: every epoch while they take less than 5 % of the time",
        at_least(0));
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
  f.list("learning_rate_scheduler", learning_rate_scheduler,
         "[F, N]: the learning rate is multiplied by F ^ (epoch / N)", above(0));
  f.alias("lr", {"learning_rate"});
}

double TrainSettings::rate_factor(int64_t epoch) const {
  if (learning_rate_scheduler.size() != 2) {
    throw usage_error("learning_rate_scheduler: wanted a factor and epochs, like 0.96,50, got {}",
                      learning_rate_scheduler.size() == 1
                          ? "1 value"
                          : fmt::format("{} values", learning_rate_scheduler.size()));
  }
  return std::pow(learning_rate_scheduler[0],
                  static_cast<double>(epoch) / learning_rate_scheduler[1]);
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

torch::Tensor& Model::parameter(const std::string& name, torch::Tensor initial, Role role,
                                Axis axis) {
  initial = initial.to(train_.on());
  initial.set_requires_grad(true);
  parameters_.push_back({name, std::move(initial), role, axis});
  return parameters_.back().value;
}

RowTable& Model::table(const std::string& name, torch::Tensor initial, Role role, Axis axis) {
  tables_.push_back({name, RowTable(initial.to(train_.on())), role, axis});
  return tables_.back().value;
}

MakeParameter Model::maker(Role role) {
  return [this, role](const std::string& name, torch::Tensor initial) -> torch::Tensor& {
    return parameter(name, std::move(initial), role);
  };
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

std::vector<std::pair<std::string, Axis>> Model::axes() const {
  std::vector<std::pair<std::string, Axis>> out;
  for (const auto& p : parameters_) out.emplace_back(p.name, p.axis);
  for (const auto& t : tables_) out.emplace_back(t.name, t.axis);
  std::erase_if(out, [](const auto& each) { return each.second == Axis::whole; });
  return out;
}

const std::shared_ptr<const TrainFacts>& Model::facts() {
  if (!facts_) facts_ = std::make_shared<const TrainFacts>(data_);
  return facts_;
}

std::shared_ptr<const Scorer> Model::freeze() {
  const torch::NoGradGuard no_gradients;
  const ReferenceOps plain(train_.reference());
  if (training_) train(false);
  return make_scorer();
}

namespace {

/// Whole rows of scores, as the model makes them.
class WholeScorer final : public Scorer {
 public:
  using Score = std::function<torch::Tensor(const Queries&)>;
  WholeScorer(std::shared_ptr<const TrainFacts> facts, const Abilities& abilities, bool reads_order,
              Score score)
      : Scorer(std::move(facts), abilities), reads_order_(reads_order), score_(std::move(score)) {}
  bool reads_order() const override { return reads_order_; }

 protected:
  BlockScores own(const Queries& queries) const override {
    // Strangers are answered by the train counts unless their history speaks.
    Queries asked = queries;
    if (asked.users.defined()) asked.users = asked.users.clamp_min(0);
    return BlockScores(score_(asked));
  }

 private:
  const bool reads_order_;
  const Score score_;
};

}  // namespace

std::shared_ptr<const Scorer> Model::make_scorer() {
  const Abilities can = abilities();
  return std::make_shared<WholeScorer>(
      facts(), can, can.takes_histories && batch_spec().unit == BatchSpec::Unit::sequence_row,
      [this](const Queries& queries) { return whole_scores(queries); });
}

torch::Tensor Model::whole_scores(const Queries&) const {
  throw std::logic_error("a model that makes no scorer of its own gives whole_scores()");
}

const Vectors& FactorModel::factors() {
  if (!remembered_.users.defined()) {
    const torch::NoGradGuard no_grad;
    const Vectors now = vectors();
    remembered_ = {now.users.contiguous(), now.items.contiguous()};
  }
  return remembered_;
}

std::shared_ptr<const Scorer> FactorModel::make_scorer() {
  return std::make_shared<VectorScorer>(facts(), abilities(), factors());
}

void GraphModel::prepare(const Watch&) {
  for (const auto& graph : item_graphs_) graph.get();
}

void GraphModel::state(State& state) {
  FactorModel::state(state);
  for (auto& graph : item_graphs_) graph.state(state);
}

const StoredGraph& GraphModel::item_graph(const std::string& name,
                                          std::function<NeighbourGraph()> fit) {
  return item_graphs_.emplace_back(name, data_.n_items, std::move(fit));
}

}  // namespace tessera

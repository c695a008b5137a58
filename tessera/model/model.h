#pragma once

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/fields.h"
#include "tessera/base/json.h"
#include "tessera/base/log.h"
#include "tessera/base/random.h"
#include "tessera/data/dataset.h"
#include "tessera/model/scorer.h"
#include "tessera/model/state.h"
#include "tessera/model/stored_graph.h"
#include "tessera/nn/linear.h"
#include "tessera/ops/adam.h"

namespace tessera {

/// One step's examples. Fields that batch_spec() did not ask for are undefined tensors; all index
/// tensors are int64.
struct Batch {
  int64_t step = 0;  ///< global, from 1; keys every random draw
  int64_t epoch = 0;
  torch::Tensor users, positives;  ///< [B]
  torch::Tensor negatives;         ///< [B, n_negatives]
  /// Rows to gather once, ascending, and the inverses that point into them. distinct_items covers
  /// positives and negatives.
  torch::Tensor distinct_users, distinct_items;
  torch::Tensor user_inverse, positive_inverse;  ///< [B]
  torch::Tensor negative_inverse;                ///< [B, n_negatives]
  Ragged rows;                                   ///< inputs of sequence rows, oldest first
  torch::Tensor row_users;                       ///< [rows]
  torch::Tensor targets;                         ///< int64, what to predict, packed by row
  torch::Tensor target_offsets;  ///< [rows + 1]; one target per input, or one per row
  int64_t size() const;          ///< pairs, users or rows in this batch
  /// The same with users, items and their places on that device. Sequence rows and their targets
  /// stay in main memory, where models cut and pad them.
  Batch to(torch::Device device) const;
};

/// What a model's loss wants to see.
struct BatchSpec {
  /// pair: every train row once an epoch; user: every user with a train row once; distinct_user:
  /// users drawn anew for each step, none twice in it, each with one of its items.
  enum class Unit { pair, user, distinct_user, sequence_row } unit = Unit::pair;
  enum class Rows {
    user,
    chunk,
    prefix
  } rows = Rows::user;  ///< of sequence_row, sequential section 1
  int64_t n_negatives = 0;
  /// Where negatives come from, the user's own items left out: items with a train row (baselines
  /// section 0), or all (mmssl section 1.10).
  enum class Pool { trained, all } pool = Pool::trained;
  int64_t max_length = 50;
  /// What several processes may divide among them (scale section 1): the pairs of a loss that is a
  /// sum over them, or nothing.
  enum class Split { pairs, none } split = Split::pairs;
  bool distinct = true;  ///< batches of users also list their distinct rows, with inverses
};

/// Settings of the training that models may want to know.
struct TrainSettings {
  Chosen<int64_t> epochs = 1000;  ///< where nobody chose, the protocol's
  int64_t train_batch_size = 2048;
  int64_t eval_batch_size = 4096;
  double learning_rate = 1e-3;
  double weight_decay = 0;
  double clip_grad_norm = 0;
  int64_t stopping_step = -1;  ///< -1: the protocol's patience
  int64_t eval_step = 1;
  int64_t seed = 999;
  double time_limit = 0;  ///< minutes, 0: none
  std::string protocol = "strict";
  std::string valid_metric;  ///< empty: the protocol's
  std::vector<std::string> metrics;
  std::vector<int64_t> topk;  ///< empty: the protocol's
  std::vector<std::string> modalities, permute;
  std::string missing;  ///< empty: the model's own
  int64_t fold = -1;
  int64_t checkpoint = 0;  ///< epochs between checkpoints, 0: as often as their cost allows
  int64_t threads = 0;     ///< 0: all cores
  std::string device = "cpu";
  bool test_curve = false, tensorboard = false;
  int64_t sparse_max = 3;
  double tail_ratio = 0.1;
  std::string map_norm = "min";
  std::vector<double> learning_rate_scheduler = {1, 50};  ///< factor and epochs

  void describe(Fields& f);
  /// What learning rates are multiplied by in that epoch; exit 2 unless the scheduler is a pair.
  double rate_factor(int64_t epoch) const;
  /// Where the tensors of `device` lie: cpu and reference are both main memory; exit 2 for others.
  torch::Device on() const;
  /// Whether ops go by plain tensor operations on the CPU (ops/device.h).
  bool reference() const { return device == "reference"; }
};

/// What a model is built from. The data outlives the model.
struct Context {
  const TrainView& data;
  Random random;
  TrainSettings train;
  Log log;
  torch::Device device() const { return train.on(); }
};

struct Loss {
  torch::Tensor total;
  std::vector<std::pair<std::string, torch::Tensor>> parts;
};

struct Progress {
  std::function<void(int64_t)> advance = [](int64_t) {};
};

/// The trainer as hooks see it.
class Watch {
 public:
  std::function<void(const Json&)> log = [](const Json&) {};  ///< one line of metrics.jsonl
  std::function<Progress(std::string, int64_t)> progress = [](std::string, int64_t) {
    return Progress{};
  };
  std::function<bool()> stop_requested = [] { return false; };
  std::function<void()> checkpoint = [] {};  ///< call at least once a minute in long loops
  Log text;
};

/// Tensors and tables that one optimiser rule trains.
struct ParameterGroup {
  std::string name;
  std::vector<std::pair<std::string, torch::Tensor*>> tensors;
  std::vector<std::pair<std::string, RowTable*>> tables;
  std::function<double(int64_t)>
      learning_rate;  ///< of the step, before the scheduler; empty: the `learning_rate` setting
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0;
  AdamOptions::Decay decay = AdamOptions::Decay::none;
};

/// Whose rows a tensor holds, so that several processes may hold a part each (scale section 1).
enum class Axis { whole, by_user, by_item };

class FeatureSupplier;
class RowEncoder;
class ItemEncoder;
class ItemPretrainer;
class Reporter;
class OwnStep;
class EvalMask;

/// What a model offers beyond training and ranking (model/offers.h); null where it does not. A
/// model that stands around another one hands on what that one offers.
struct Offers {
  FeatureSupplier* features = nullptr;
  RowEncoder* rows = nullptr;
  ItemEncoder* items = nullptr;
  ItemPretrainer* pretraining = nullptr;
  Reporter* report = nullptr;
  OwnStep* step = nullptr;
  EvalMask* mask = nullptr;
};

class Model {
 public:
  explicit Model(const Context& context);
  virtual ~Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  virtual Abilities abilities() const = 0;
  virtual BatchSpec batch_spec() const { return {}; }
  /// {total, named parts for the log}. Called with gradients on.
  virtual Loss loss(const Batch& batch);
  /// The model as it stands, made ready to rank; training() goes off. Of a model that is trained on
  /// afterwards the scorer is void.
  virtual std::shared_ptr<const Scorer> freeze();
  /// [n, n_items], higher is better.
  torch::Tensor score(const Queries& queries) { return freeze()->scores(queries); }
  /// What it offers beyond that.
  virtual Offers offers() { return {}; }
  /// What loss() trains; read again after each hook. Default: all of parameter() and table().
  virtual std::vector<ParameterGroup> parameter_groups();
  /// Once, before the first epoch: PAMD's pretraining, KDSR's teacher, closed-form models. Called
  /// again on a resume that falls inside it; state() tells how far it was.
  virtual void prepare(const Watch&) {}
  virtual void begin_epoch(int64_t /*epoch*/, const Watch&) {}
  virtual void before_step(const Batch&) {}
  virtual void end_epoch(int64_t /*epoch*/, const Watch&) {}
  /// Names everything that a resumed run needs; one function for saving and loading. Default: all
  /// of parameter() and table(), as scoring.
  virtual void state(State& state);

  /// On while loss() is called; switching it forgets what was remembered for ranking.
  void train(bool on);
  bool training() const { return training_; }
  bool trainable() { return !parameter_groups().empty(); }
  const TrainView& data() const { return data_; }
  /// The trained tensors and tables that hold a row a user or an item, by name.
  virtual std::vector<std::pair<std::string, Axis>> axes() const;
  const TrainSettings& settings() const { return train_; }

  // For the model's constructor and the parts it is built of.
  /// A trained tensor that loss() reads whole, on the device of the run; it requires a gradient.
  /// The reference stays valid.
  torch::Tensor& parameter(const std::string& name, torch::Tensor initial,
                           Role role = Role::scoring, Axis axis = Axis::whole);
  /// A trained table that loss() gathers rows of.
  RowTable& table(const std::string& name, torch::Tensor initial, Role role = Role::scoring,
                  Axis axis = Axis::whole);
  /// parameter() as layers take it.
  MakeParameter maker(Role role = Role::scoring);

 protected:
  virtual void forget() {}
  /// The scorer of the model as it stands; default: one of whole_scores(). Gradients are off.
  virtual std::shared_ptr<const Scorer> make_scorer();
  /// [n, n_items] of a model that has no other way. Several threads may call it.
  virtual torch::Tensor whole_scores(const Queries& queries) const;
  const std::shared_ptr<const TrainFacts>& facts();

  const TrainView& data_;
  const Random random_;
  const TrainSettings train_;
  const Log log_;

 private:
  template <typename T>
  struct Named {
    std::string name;
    T value;
    Role role;
    Axis axis;
  };
  std::deque<Named<torch::Tensor>> parameters_;
  std::deque<Named<RowTable>> tables_;
  std::shared_ptr<const TrainFacts> facts_;
  bool training_ = false;
};

/// A model that scores by inner product, so that an index can serve it: see VectorScorer.
class FactorModel : public Model {
 public:
  using Model::Model;
  /// All users and items, in evaluation form; remembered until training goes on.
  const Vectors& factors();

 protected:
  /// What factors() remembers.
  virtual Vectors vectors() = 0;
  void forget() override { remembered_ = {}; }
  std::shared_ptr<const Scorer> make_scorer() override;

 private:
  Vectors remembered_;
};

/// User and item vectors from one propagation over the train graph.
class GraphModel : public FactorModel {
 public:
  using FactorModel::FactorModel;
  virtual Vectors propagate() = 0;
  /// Fits the item graphs.
  void prepare(const Watch&) override;
  void state(State& state) override;

 protected:
  Vectors vectors() override { return propagate(); }
  /// A graph of the items that ranking reads; the reference stays valid.
  const StoredGraph& item_graph(const std::string& name, std::function<NeighbourGraph()> fit);

 private:
  std::deque<StoredGraph> item_graphs_;
};

}  // namespace tessera

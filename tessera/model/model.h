#pragma once

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <array>
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
#include "tessera/model/state.h"
#include "tessera/ops/adam.h"

namespace tessera {

/// Rows of different lengths, packed.
struct Ragged {
  torch::Tensor items;    ///< int32 [n]
  torch::Tensor offsets;  ///< int64 [rows + 1]
  bool defined() const { return offsets.defined(); }
  int64_t n_rows() const { return defined() ? offsets.size(0) - 1 : 0; }
};

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
  enum class Unit { pair, distinct_user, sequence_row } unit = Unit::pair;
  enum class Rows {
    user,
    chunk,
    prefix
  } rows = Rows::user;  ///< of sequence_row, sequential section 1
  int64_t n_negatives = 0;
  int64_t max_length = 50;
};

/// Whom to recommend to: users (int64 [n], -1 unknown), their histories, or both. Where both are
/// given the history wins for models that take one natively.
struct Queries {
  torch::Tensor users;
  Ragged histories;
  int64_t size() const { return users.defined() ? users.size(0) : histories.n_rows(); }
};

/// Settings of the training that models may want to know.
struct TrainSettings {
  int64_t epochs = 1000;
  bool epochs_given = false;
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
  int64_t checkpoint = 1;
  int64_t threads = 0;  ///< 0: all cores
  std::string device = "cpu";
  bool test_curve = false, tensorboard = false;
  int64_t sparse_max = 3;
  double tail_ratio = 0.1;
  std::string map_norm = "min";

  void describe(Fields& f);
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

struct Vectors {
  torch::Tensor users, items;
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
      learning_rate;  ///< of the step; empty: the `learning_rate` setting
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0;
  AdamOptions::Decay decay = AdamOptions::Decay::none;
};

/// What a model can and cannot do, as help, errors and reports tell it.
struct Abilities {
  bool uses_features = false;         ///< learns from item features and needs at least one modality
  bool score_reads_features = false;  ///< reads them when ranking
  bool ranks_cold_items = false;      ///< items without a train row get a meaningful score
  bool takes_histories = false;       ///< scores from a history natively
};

/// Each by its name, for files and tables.
std::array<std::pair<const char*, bool*>, 4> flags_of(Abilities& abilities);

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
  /// [n, n_items], higher is better. Called without gradients, training() off.
  virtual torch::Tensor score(const Queries& queries) = 0;
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
  const TrainSettings& settings() const { return train_; }

 protected:
  /// A trained tensor that loss() reads whole, on the device of the run; it requires a gradient.
  /// The reference stays valid.
  torch::Tensor& parameter(const std::string& name, torch::Tensor initial,
                           Role role = Role::scoring);
  /// A trained table that loss() gathers rows of.
  RowTable& table(const std::string& name, torch::Tensor initial, Role role = Role::scoring);
  virtual void forget() {}

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
  };
  std::deque<Named<torch::Tensor>> parameters_;
  std::deque<Named<RowTable>> tables_;
  bool training_ = false;
};

/// A model that scores by inner product, so that an index can serve it. Users with a train row are
/// answered by their vector; others by the mean of their history's item vectors.
class FactorModel : public Model {
 public:
  using Model::Model;
  torch::Tensor score(const Queries& queries) override;
  torch::Tensor user_vectors(const Queries& queries);  ///< [n, dim]
  torch::Tensor item_vectors();                        ///< [n_items, dim]

 protected:
  /// All users and items, in evaluation form. Remembered until training goes on.
  virtual Vectors vectors() = 0;
  void forget() override { remembered_ = {}; }

 private:
  const Vectors& remembered();
  Vectors remembered_;
};

/// User and item vectors from one propagation over the train graph.
class GraphModel : public FactorModel {
 public:
  using FactorModel::FactorModel;
  virtual Vectors propagate() = 0;

 protected:
  Vectors vectors() override { return propagate(); }
};

/// Rows of a feature that a model made for others.
struct NamedRows {
  std::string modality;
  torch::Tensor rows;   ///< float32 [n, width]
  torch::Tensor items;  ///< int64 [n]
  Json card;            ///< encoder entry of the manifest
};

/// A model whose product is features for others (PAMD, R2MR); found by dynamic_cast.
class FeatureSupplier {
 public:
  virtual ~FeatureSupplier() = default;
  virtual void fit(const Watch& watch) = 0;
  virtual std::vector<NamedRows> export_features(const Json& options) = 0;
};

/// Numbers a person should see beside the metrics; found by dynamic_cast. `held` are the held-out
/// rows by user, of which a report may tell what became of them; nothing learns from them.
class Reporter {
 public:
  virtual ~Reporter() = default;
  virtual Json report(const Interactions& held = {}) = 0;
};

}  // namespace tessera

#include "tessera/model/sequence_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <span>

#include "tessera/base/error.h"
#include "tessera/ops/gather.h"

namespace tessera {
namespace {

constexpr int64_t kSlots = 1 << 11;  // encoded at once when ranking

}  // namespace

void SequenceSettings::describe(Fields& f) {
  f.add("max_length", max_length, "items of a history that are read, the last ones", at_least(1));
  f.choice(
      "rows", rows,
      "training rows: user (the last window), chunk (all windows), prefix (one per target; the "
      "default under protocol recbole-seq)",
      {"user", "chunk", "prefix"});
  f.choice("loss", loss, "ce: softmax over all items; the others over sampled negatives",
           {"ce", "sampled_softmax", "bce", "gbce"});
  f.add("n_negatives", n_negatives, "negatives of a sampled loss (bce: 1)", at_least(1));
  f.choice("neg_share", neg_share,
           "who shares negatives: nobody, a row (none of its user's items), the batch",
           {"position", "row", "batch"});
  f.add("unseen_negatives", unseen_negatives,
        "a position's negatives are none of its user's items (bce: true)");
  f.add(
      "logq", logq,
      "sampled_softmax: less the log of how often a step draws a negative, counted over the items "
      "that its row draws from");
  f.add("gbce_t", gbce_t, "calibration of gbce; 0: bce", between(0, 1));
  f.choice("reduce", reduce, "of bce: the sum over target and negatives, or their mean",
           {"sum", "mean"});
  f.preset("loss", "bce", {{"n_negatives", 1}, {"unseen_negatives", true}});
  f.preset("protocol", "recbole-seq", {{"rows", "prefix"}});
  f.global_default("train_batch_size", 128);
}

torch::Tensor ItemRows::rows(const torch::Tensor& items) {
  if (!lazy()) return gather_rows(*whole_, items);
  return leaf_.defined() ? gather_rows(leaf_, places(items)) : lazy_->rows(items);
}

void ItemRows::begin(const std::vector<torch::Tensor>& read) {
  read_.emplace(lazy_->n_rows());
  for (const auto& items : read) read_->mark(items.contiguous());
  leaf_ = lazy_->gather(read_->list());
}

torch::Tensor ItemRows::places(const torch::Tensor& items) const {
  return read_->inverse(items.contiguous());
}

SequenceModel::SequenceModel(const SequenceSettings& settings, const Context& context)
    : Model(context), sequence_(settings) {}

BatchSpec SequenceModel::batch_spec() const {
  BatchSpec spec;
  spec.unit = BatchSpec::Unit::sequence_row;
  spec.rows = sequence_.rows == "prefix"  ? BatchSpec::Rows::prefix
              : sequence_.rows == "chunk" ? BatchSpec::Rows::chunk
                                          : BatchSpec::Rows::user;
  spec.max_length = sequence_.max_length;
  return spec;
}

ItemRows& SequenceModel::item_rows(torch::Tensor initial, bool read_whole) {
  const bool whole = sequence_.loss == "ce" || read_whole;
  item_rows_.emplace(
      whole ? &parameter("item_embedding", std::move(initial), Role::scoring, Axis::by_item)
            : nullptr,
      whole ? nullptr : &table("item_embedding", std::move(initial), Role::scoring, Axis::by_item));
  return *item_rows_;
}

Pass SequenceModel::pass_of(const Batch& batch) const {
  Pass pass;
  pass.offsets = batch.rows.offsets;
  pass.training = training();
  pass.random = random_;
  pass.step = batch.step;
  return pass;
}

torch::Tensor SequenceModel::row_vectors(const torch::Tensor& items, const Pass& pass) {
  return gather_rows(encode(items, pass), last_slots(pass.offsets));
}

Loss SequenceModel::loss(const Batch& batch) {
  const auto items = batch.rows.items.to(torch::kInt64);
  const Pass pass = pass_of(batch);
  const bool every_slot = sequence_.rows != "prefix";  // has a target
  auto row_of = torch::arange(batch.rows.n_rows(), torch::kInt64);
  if (every_slot) row_of = row_of.repeat_interleave(batch.rows.offsets.diff());
  torch::Tensor sampled;
  if (sequence_.loss != "ce") sampled = negatives(row_of, batch);
  const bool lazy = item_rows_ && item_rows_->lazy();
  if (lazy) item_rows_->begin({items, batch.targets, sampled});
  const auto vectors = every_slot ? encode(items, pass) : row_vectors(items, pass);
  Loss out;
  out.total = item_loss(vectors, batch, row_of, sampled);
  out.parts.emplace_back(sequence_.loss, out.total);
  if (lazy) item_rows_->end();
  return out;
}

torch::Tensor SequenceModel::item_loss(const torch::Tensor& vectors, const Batch& batch,
                                       const torch::Tensor& row_of, torch::Tensor sampled) {
  torch::Tensor targets = batch.targets;
  if (sequence_.loss == "ce") {
    return softmax_loss(vectors, candidates(), targets, candidate_bias());
  }
  TORCH_CHECK(!candidate_bias().defined(), "sampled losses know no bias");
  const int64_t k = sampled.size(1);
  SampledLoss kind;
  if (sequence_.loss != "sampled_softmax") {
    kind.kind = SampledLoss::Kind::binary;
    kind.mean = sequence_.loss == "gbce" || sequence_.reduce == "mean";
    if (sequence_.loss == "gbce") {
      kind.target_weight = gbce_weight(k, data_.n_items, sequence_.gbce_t);
    }
  }
  torch::Tensor group_of = row_of;
  if (sequence_.neg_share == "batch") group_of = torch::zeros_like(row_of);
  if (sequence_.neg_share == "position") group_of = torch::arange(row_of.size(0), torch::kInt64);
  torch::Tensor items;
  if (item_rows_ && item_rows_->lazy()) {
    items = item_rows_->gathered();
    targets = item_rows_->places(targets);
    sampled = item_rows_->places(sampled);
  } else {
    items = candidates();
  }
  if (sequence_.loss != "sampled_softmax" || !sequence_.logq) {
    return sampled_loss(vectors, items, targets, sampled, group_of, kind);
  }
  // k draws from a pool of n items take each k / n times: one correction a size of pool.
  std::map<int64_t, std::vector<int64_t>> by_pool;
  const std::vector<int64_t> pool_of_row = pools(batch);
  const auto* row = row_of.const_data_ptr<int64_t>();
  for (int64_t p = 0; p < row_of.size(0); ++p) {
    by_pool[pool_of_row[static_cast<size_t>(row[p])]].push_back(p);
  }
  torch::Tensor total;
  for (const auto& [pool, positions] : by_pool) {
    kind.correction = std::log(static_cast<double>(k) / static_cast<double>(pool));
    if (by_pool.size() == 1) {
      return sampled_loss(vectors, items, targets, sampled, group_of, kind);
    }
    const auto at = torch::tensor(positions, torch::kInt64);
    const auto [groups, group_at, counts] =
        torch::unique_consecutive(group_of.index_select(0, at), /*return_inverse=*/true);
    const auto part = sampled_loss(gather_rows(vectors, at), items, targets.index_select(0, at),
                                   sampled.index_select(0, groups), group_at, kind) *
                      (static_cast<double>(positions.size()) / static_cast<double>(row_of.size(0)));
    total = total.defined() ? total + part : part;
  }
  return total;
}

std::vector<int64_t> SequenceModel::pools(const Batch& batch) const {
  std::vector<int64_t> out(static_cast<size_t>(batch.rows.n_rows()), data_.n_items);
  const bool unseen = sequence_.neg_share == "row" ||
                      (sequence_.neg_share == "position" && sequence_.unseen_negatives);
  const auto* users = batch.row_users.const_data_ptr<int64_t>();
  for (size_t row = 0; unseen && row < out.size(); ++row) {
    const auto own = static_cast<int64_t>(data_.train_distinct.of(users[row]).size());
    if (own < data_.n_items) out[row] -= own;  // else its own items stand in
  }
  return out;
}

/// int64 [groups, k], keyed by (step, group); uniform over all items, of a row without repeats.
torch::Tensor SequenceModel::negatives(const torch::Tensor& row_of, const Batch& batch) const {
  const Random random = random_.stream("sequence_negatives");
  const auto step = static_cast<uint64_t>(batch.step);
  const auto n_items = static_cast<uint32_t>(data_.n_items);
  const auto* users = batch.row_users.const_data_ptr<int64_t>();
  if (sequence_.neg_share == "row") {
    int64_t k = std::min<int64_t>(sequence_.n_negatives, data_.n_items);
    for (int64_t row = 0; row < batch.rows.n_rows(); ++row) {
      const auto own = static_cast<int64_t>(data_.train_distinct.of(users[row]).size());
      if (own < data_.n_items) k = std::min(k, data_.n_items - own);
    }
    torch::Tensor out = torch::empty({batch.rows.n_rows(), k}, torch::kInt64);
    auto* to = out.mutable_data_ptr<int64_t>();
    std::vector<int32_t> others;
    for (int64_t row = 0; row < batch.rows.n_rows(); ++row) {
      const auto own = data_.train_distinct.of(users[row]);
      others.clear();
      for (int32_t item = 0; item < data_.n_items; ++item) {
        // A user who has every item: its own ones stand in, and count nothing as targets.
        if (!contains(own, item) || static_cast<int64_t>(own.size()) == data_.n_items) {
          others.push_back(item);
        }
      }
      uint32_t draw = 0;
      for (int64_t j = 0; j < k; ++j) {  // the first k places of a Fisher-Yates shuffle
        const auto left = static_cast<uint32_t>(others.size() - static_cast<size_t>(j));
        const auto from =
            static_cast<size_t>(j) + random.below(left, step, static_cast<uint64_t>(row), draw);
        std::swap(others[static_cast<size_t>(j)], others[from]);
        to[row * k + j] = others[static_cast<size_t>(j)];
      }
    }
    return out;
  }
  const int64_t groups = sequence_.neg_share == "batch" ? 1 : row_of.size(0);
  const int64_t k = sequence_.n_negatives;
  torch::Tensor out = torch::empty({groups, k}, torch::kInt64);
  auto* to = out.mutable_data_ptr<int64_t>();
  const auto* row = row_of.const_data_ptr<int64_t>();
  for (int64_t group = 0; group < groups; ++group) {
    const auto own = data_.train_distinct.of(users[row[group]]);
    const bool unseen = sequence_.unseen_negatives && sequence_.neg_share == "position" &&
                        static_cast<int64_t>(own.size()) < data_.n_items;
    uint32_t draw = 0;
    for (int64_t j = 0; j < k; ++j) {
      int32_t item = 0;
      do {
        item =
            static_cast<int32_t>(random.below(n_items, step, static_cast<uint64_t>(group), draw));
      } while (unseen && contains(own, item));
      to[group * k + j] = item;
    }
  }
  return out;
}

/// Vectors of the next item against those of all items, to be ranked piece by piece. Several
/// threads may ask: out of training the model only reads.
class SequenceScorer final : public Scorer {
 public:
  SequenceScorer(SequenceModel& model, std::shared_ptr<const TrainFacts> facts)
      : Scorer(std::move(facts), model.abilities()), model_(model), items_(model.candidates()) {
    if (const auto bias = model.candidate_bias(); bias.defined()) {
      items_ = torch::cat({items_, bias.unsqueeze(1)}, 1);
      has_bias_ = true;
    }
  }
  bool reads_order() const override { return true; }

 protected:
  BlockScores own(const Queries& queries) const override;

 private:
  SequenceModel& model_;
  torch::Tensor items_;    // [n_items, d], with the bias as a last column where there is one
  bool has_bias_ = false;  // which every row with a history takes once
};

BlockScores SequenceScorer::own(const Queries& queries) const {
  const int64_t n = queries.size();
  // The windows as spans into the histories, shortest first, so that rows of like length meet.
  std::vector<std::span<const int32_t>> windows(static_cast<size_t>(n));
  for (int64_t row = 0; row < n; ++row) {
    std::span<const int32_t> history;
    if (queries.histories.defined()) {
      history = queries.histories.row(row);
    } else if (const int64_t user = queries.user(row); user >= 0) {
      history = model_.data_.train.of(user);
    }
    const auto most = static_cast<size_t>(model_.sequence_.max_length);
    windows[static_cast<size_t>(row)] =
        history.subspan(history.size() - std::min(history.size(), most));
  }
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return windows[static_cast<size_t>(a)].size() < windows[static_cast<size_t>(b)].size();
  });

  torch::Tensor vectors = torch::zeros({n, items_.size(1)}, items_.options());
  auto encoded = has_bias_ ? vectors.slice(1, 0, -1) : vectors;
  for (size_t at = 0; at < order.size();) {
    if (windows[static_cast<size_t>(order[at])].empty()) {
      ++at;  // the train counts answer
      continue;
    }
    std::vector<int64_t> items, offsets = {0}, rows;
    while (at < order.size()) {
      const auto& window = windows[static_cast<size_t>(order[at])];
      if (!rows.empty() && static_cast<int64_t>(items.size() + window.size()) > kSlots) break;
      items.insert(items.end(), window.begin(), window.end());
      offsets.push_back(static_cast<int64_t>(items.size()));
      rows.push_back(order[at++]);
    }
    Pass pass;
    pass.offsets = torch::tensor(offsets, torch::kInt64);
    encoded.index_copy_(0, torch::tensor(rows, torch::kInt64),
                        model_.row_vectors(torch::tensor(items, torch::kInt64), pass));
  }
  if (has_bias_) vectors.slice(1, -1).fill_(1);
  return BlockScores(Vectors{vectors, items_});
}

std::shared_ptr<const Scorer> SequenceModel::make_scorer() {
  if (item_rows_ && item_rows_->lazy()) item_rows_->all();  // nothing is pending from here on
  return std::make_shared<SequenceScorer>(*this, facts());
}

}  // namespace tessera

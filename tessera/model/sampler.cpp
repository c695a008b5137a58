#include "tessera/model/sampler.h"

#include <algorithm>
#include <numeric>

#include "tessera/base/error.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

constexpr int64_t kGrain = 256;  // rows a thread draws negatives for at least

torch::Tensor int64_of(const std::vector<int64_t>& values) {
  return torch::tensor(values, torch::kInt64);
}

}  // namespace

Sampler::Sampler(const TrainView& data, const BatchSpec& spec, int64_t batch_size,
                 const Random& random)
    : data_(data),
      spec_(spec),
      batch_size_(batch_size),
      order_(random.stream("order")),
      negatives_(random.stream("negatives")),
      users_random_(random.stream("batch_users")),
      positives_random_(random.stream("batch_positives")) {
  const auto counts = item_counts(data.train, data.n_items);
  for (int64_t i = 0; i < data.n_items; ++i) {
    if (spec.pool == BatchSpec::Pool::all || counts.const_data_ptr<int64_t>()[i] > 0) {
      candidates_.push_back(static_cast<int32_t>(i));
    }
  }
  for (int64_t u = 0; u < data.n_users; ++u) {
    const auto row = data.train.of(u);
    if (row.empty()) continue;
    if (spec.n_negatives > 0 && data.train_distinct.of(u).size() == candidates_.size()) {
      n_left_out_ += static_cast<int64_t>(row.size());
      continue;
    }
    active_users_.push_back(static_cast<int32_t>(u));
    if (spec.unit == BatchSpec::Unit::pair) {
      pair_users_.insert(pair_users_.end(), row.size(), static_cast<int32_t>(u));
      pair_items_.insert(pair_items_.end(), row.begin(), row.end());
    } else if (spec.unit == BatchSpec::Unit::sequence_row) {
      const auto n = static_cast<int64_t>(row.size());
      const auto user = static_cast<int32_t>(u);
      if (spec.rows == BatchSpec::Rows::prefix) {
        for (int64_t t = 1; t < n; ++t) {
          rows_.push_back({user, std::max<int64_t>(0, t - spec.max_length), t, true});
        }
      } else {
        for (int64_t end = n - 1; end > 0; end -= spec.max_length) {
          rows_.push_back({user, std::max<int64_t>(0, end - spec.max_length), end, false});
          if (spec.rows == BatchSpec::Rows::user) break;
        }
      }
    }
  }
  const auto batches_of = [&](int64_t n) { return (n + batch_size_ - 1) / batch_size_; };
  switch (spec.unit) {
    case BatchSpec::Unit::pair:
      n_batches_ = batches_of(static_cast<int64_t>(pair_users_.size()));
      break;
    case BatchSpec::Unit::user:
      n_batches_ = batches_of(static_cast<int64_t>(active_users_.size()));
      break;
    case BatchSpec::Unit::distinct_user:
      batch_size_ = std::min<int64_t>(batch_size_, static_cast<int64_t>(active_users_.size()));
      n_batches_ = batch_size_ == 0 ? 0 : data.train.n_rows() / batch_size_ + 1;
      break;
    case BatchSpec::Unit::sequence_row:
      n_batches_ = batches_of(static_cast<int64_t>(rows_.size()));
      break;
  }
  if (n_batches_ == 0) {
    throw data_error("nothing to train on: {} train rows, none usable by this model",
                     data.train.n_rows());
  }
}

void Sampler::begin_epoch(int64_t epoch) {
  epoch_ = epoch;
  if (spec_.unit == BatchSpec::Unit::distinct_user) return;
  const size_t n = spec_.unit == BatchSpec::Unit::pair   ? pair_users_.size()
                   : spec_.unit == BatchSpec::Unit::user ? active_users_.size()
                                                         : rows_.size();
  order_of_epoch_.resize(n);
  std::iota(order_of_epoch_.begin(), order_of_epoch_.end(), int64_t{0});
  order_.shuffle(order_of_epoch_, epoch);
  if (spec_.unit != BatchSpec::Unit::sequence_row) return;
  // Rows of like length share a batch: sorted inside chunks of 8 batches, batches shuffled.
  const auto length = [&](int64_t i) { return rows_[i].end - rows_[i].begin; };
  row_batches_.clear();
  for (size_t begin = 0; begin < n; begin += 8 * batch_size_) {
    const auto from = order_of_epoch_.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto to = order_of_epoch_.begin() +
                    static_cast<std::ptrdiff_t>(std::min<size_t>(n, begin + 8 * batch_size_));
    std::stable_sort(from, to, [&](int64_t a, int64_t b) { return length(a) < length(b); });
    for (auto it = from; it < to; it += std::min<std::ptrdiff_t>(batch_size_, to - it)) {
      row_batches_.emplace_back(it, it + std::min<std::ptrdiff_t>(batch_size_, to - it));
    }
  }
  order_.shuffle(row_batches_, epoch, 1);
}

Batch Sampler::batch(int64_t index, int64_t step) const {
  Batch out;
  switch (spec_.unit) {
    case BatchSpec::Unit::pair:
      out = pairs(index);
      break;
    case BatchSpec::Unit::user:
      out = users(index);
      break;
    case BatchSpec::Unit::distinct_user:
      out = distinct_users(step);
      break;
    case BatchSpec::Unit::sequence_row:
      out = sequences(index);
      break;
  }
  out.step = step;
  out.epoch = epoch_;
  if (out.users.defined()) {
    draw_negatives(out, step);
    if (spec_.distinct) index_distinct(out);
  }
  return out;
}

Batch Sampler::pairs(int64_t index) const {
  const int64_t begin = index * batch_size_;
  const int64_t n =
      std::min<int64_t>(batch_size_, static_cast<int64_t>(pair_users_.size()) - begin);
  Batch out;
  out.users = torch::empty({n}, torch::kInt64);
  out.positives = torch::empty({n}, torch::kInt64);
  auto* users = out.users.mutable_data_ptr<int64_t>();
  auto* items = out.positives.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) {
    users[i] = pair_users_[order_of_epoch_[begin + i]];
    items[i] = pair_items_[order_of_epoch_[begin + i]];
  }
  return out;
}

Batch Sampler::users(int64_t index) const {
  const int64_t begin = index * batch_size_;
  const int64_t n =
      std::min<int64_t>(batch_size_, static_cast<int64_t>(active_users_.size()) - begin);
  std::vector<int64_t> users;
  for (int64_t i = 0; i < n; ++i) users.push_back(active_users_[order_of_epoch_[begin + i]]);
  Batch out;
  out.users = int64_of(users);
  return out;
}

Batch Sampler::distinct_users(int64_t step) const {
  std::vector<int32_t> all = active_users_;
  std::vector<int64_t> users, positives;
  uint32_t draw = 0;
  for (int64_t i = 0; i < batch_size_; ++i) {  // the first B places of a Fisher-Yates shuffle
    const auto left = static_cast<uint32_t>(all.size() - i);
    std::swap(all[i], all[i + users_random_.below(left, step, 0, draw)]);
    const auto row = data_.train_distinct.of(all[i]);
    uint32_t at = 0;
    users.push_back(all[i]);
    positives.push_back(
        row[positives_random_.below(static_cast<uint32_t>(row.size()), step, i, at)]);
  }
  Batch out;
  out.users = int64_of(users);
  out.positives = int64_of(positives);
  return out;
}

Batch Sampler::sequences(int64_t index) const {
  std::vector<int32_t> inputs;
  std::vector<int64_t> offsets = {0}, users, targets, target_offsets = {0};
  for (const int64_t i : row_batches_[index]) {
    const Row& row = rows_[i];
    const auto items = data_.train.of(row.user);
    users.push_back(row.user);
    inputs.insert(inputs.end(), items.begin() + row.begin, items.begin() + row.end);
    offsets.push_back(static_cast<int64_t>(inputs.size()));
    for (int64_t t = row.one_target ? row.end : row.begin + 1; t <= row.end; ++t) {
      targets.push_back(items[t]);
    }
    target_offsets.push_back(static_cast<int64_t>(targets.size()));
  }
  Batch out;
  out.rows = {torch::tensor(inputs, torch::kInt32), int64_of(offsets)};
  out.row_users = int64_of(users);
  out.targets = int64_of(targets);
  out.target_offsets = int64_of(target_offsets);
  return out;
}

void Sampler::draw_negatives(Batch& batch, int64_t step) const {
  if (spec_.n_negatives == 0) return;
  const int64_t n = batch.users.size(0);
  batch.negatives = torch::empty({n, spec_.n_negatives}, torch::kInt64);
  const auto* users = batch.users.const_data_ptr<int64_t>();
  auto* to = batch.negatives.mutable_data_ptr<int64_t>();
  const auto n_candidates = static_cast<uint32_t>(candidates_.size());
  parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto own = data_.train_distinct.of(users[i]);
      uint32_t draw = 0;
      for (int64_t k = 0; k < spec_.n_negatives; ++k) {
        int32_t item = -1;
        for (int attempt = 0; attempt < 64 && item < 0; ++attempt) {
          const int32_t drawn = candidates_[negatives_.below(n_candidates, step, i, draw)];
          if (!contains(own, drawn)) item = drawn;
        }
        if (item < 0) {
          // Nearly all items are the user's own: draw a rank among the others instead.
          uint32_t rank =
              negatives_.below(n_candidates - static_cast<uint32_t>(own.size()), step, i, draw);
          for (const int32_t candidate : candidates_) {
            if (!contains(own, candidate) && rank-- == 0) {
              item = candidate;
              break;
            }
          }
        }
        to[i * spec_.n_negatives + k] = item;
      }
    }
  });
}

void Sampler::index_distinct(Batch& batch) const {
  DistinctRows users(data_.n_users), items(data_.n_items);
  users.mark(batch.users);
  if (batch.positives.defined()) items.mark(batch.positives);
  if (batch.negatives.defined()) items.mark(batch.negatives);
  batch.distinct_users = users.list();
  batch.distinct_items = items.list();
  batch.user_inverse = users.inverse(batch.users);
  if (batch.positives.defined()) batch.positive_inverse = items.inverse(batch.positives);
  if (batch.negatives.defined()) batch.negative_inverse = items.inverse(batch.negatives);
}

}  // namespace tessera

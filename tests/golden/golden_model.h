#pragma once

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tessera/model/registry.h"

namespace tessera {

inline torch::Tensor matrix(int64_t rows, int64_t cols, std::vector<float> values) {
  return torch::tensor(values).reshape({rows, cols});
}

inline Feature feature(const std::string& name, const torch::Tensor& rows) {
  Feature f;
  f.name = name;
  f.rows = MappedArray(rows);
  f.row_of_item = torch::arange(rows.size(0), torch::kInt32);
  return f;
}

/// A model made to hold the numbers of a golden instance, and one batch.
struct GoldenModel {
  Dataset data;
  std::unique_ptr<Model> model;
  Batch batch;

  GoldenModel(Dataset with, const std::string& name, const Settings& settings)
      : data(std::move(with)) {
    const ModelInfo& info = find_model(name);
    const RunSettings resolved = resolve_settings(info, settings);
    model = info.make(settings, Context{data.view(), Random(1), resolved.train_settings, {}});
  }

  /// Replaces weights by name; the others stay.
  void set(const std::vector<std::pair<std::string, torch::Tensor>>& values) {
    State state;
    model->state(state);
    State::Saved saved = state.save();
    for (const auto& [name, value] : values) {
      auto& file = saved.weights.contains(name) ? saved.weights : saved.optimizer;
      ASSERT_TRUE(file.contains(name)) << name;
      file[name] = value;
    }
    state.load(saved);
    for (const auto& group : model->parameter_groups()) {
      for (const auto& [name, table] : group.tables) {
        table->configure({[](int64_t) { return 1e-3; }});
      }
    }
  }

  /// Pairs with one negative each, among all users and items.
  void set_batch(const std::vector<int64_t>& users, const std::vector<int64_t>& positives,
                 const std::vector<int64_t>& negatives) {
    batch.step = 1;
    batch.users = torch::tensor(users, torch::kInt64);
    batch.positives = torch::tensor(positives, torch::kInt64);
    batch.negatives = torch::tensor(negatives, torch::kInt64).unsqueeze(1);
    batch.distinct_users = torch::arange(data.n_users, torch::kInt64);
    batch.distinct_items = torch::arange(data.n_items, torch::kInt64);
    batch.user_inverse = batch.users;
    batch.positive_inverse = batch.positives;
    batch.negative_inverse = batch.negatives;
  }

  Loss run() {
    model->train(true);
    Loss loss = model->loss(batch);
    loss.total.backward();
    return loss;
  }

  torch::Tensor gradient(const std::string& wanted) {
    for (const auto& group : model->parameter_groups()) {
      for (const auto& [name, tensor] : group.tensors) {
        if (name == wanted) return tensor->grad();
      }
      for (const auto& [name, table] : group.tables) {
        if (name == wanted) return table->gradient();
      }
    }
    return {};
  }

  torch::Tensor scores() {
    model->train(false);
    const torch::NoGradGuard no_grad;
    return model->score({torch::arange(data.n_users, torch::kInt64), {}});
  }
};

inline void expect_near(const torch::Tensor& found, const std::vector<double>& wanted,
                        double tolerance = 2e-6) {
  ASSERT_TRUE(found.defined());
  ASSERT_EQ(found.numel(), static_cast<int64_t>(wanted.size()));
  const auto flat = found.detach().flatten().to(torch::kDouble);
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_NEAR(flat[static_cast<int64_t>(i)].item<double>(), wanted[i], tolerance)
        << "entry " << i;
  }
}

inline double part(const Loss& loss, const std::string& name) {
  for (const auto& [key, value] : loss.parts) {
    if (key == name) return value.item<double>();
  }
  return std::nan("");
}

}  // namespace tessera

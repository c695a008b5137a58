#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tessera/model/bundle.h"

// A shop of six items and four users, and three small models on it, worked through by hand in
// tests/unit/recommender_test.cpp.
namespace tessera::planted {

/// user . item, optionally plus the item's image feature.
class Factors : public FactorModel {
 public:
  struct Config {
    int64_t width = 2;
    bool use_image = false;
    void describe(Fields& f) {
      f.add("width", width, "width of the vectors", at_least(1));
      f.add("use_image", use_image, "adds the image feature to the item");
    }
  };
  Factors(const Config& config, const Context& context)
      : FactorModel(context),
        config_(config),
        users_(parameter("users", torch::zeros({data_.n_users, config.width}))),
        items_(parameter("items", torch::zeros({data_.n_items, config.width}))) {}
  Abilities abilities() const override {
    return {config_.use_image, config_.use_image, false, false};
  }

 protected:
  Vectors vectors() override {
    if (!config_.use_image) return {users_, items_};
    return {users_, items_ + filled(data_, data_.features.at(0), "zero")};
  }

 private:
  const Config config_;
  torch::Tensor& users_;
  torch::Tensor& items_;
};

/// The sum over the history of rows of a matrix that prepare() counts from train.
class Neighbours : public Model {
 public:
  struct Config {
    void describe(Fields&) {}
  };
  Neighbours(const Config&, const Context& context) : Model(context) {}
  Abilities abilities() const override { return {false, false, false, true}; }
  void prepare(const Watch&) override {
    counts_ = torch::zeros({data_.n_items, data_.n_items});
    for (int64_t user = 0; user < data_.n_users; ++user) {
      for (const int32_t a : data_.train.of(user)) {
        for (const int32_t b : data_.train.of(user)) {
          if (a != b) counts_[a][b] += 1;
        }
      }
    }
  }
  torch::Tensor whole_scores(const Queries& queries) const override {
    torch::Tensor out = torch::zeros({queries.size(), data_.n_items});
    if (!queries.histories.defined()) return out;
    const auto* offsets = queries.histories.offsets.const_data_ptr<int64_t>();
    const auto* items = queries.histories.items.const_data_ptr<int32_t>();
    for (int64_t row = 0; row < queries.size(); ++row) {
      for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) out[row] += counts_[items[i]];
    }
    return out;
  }
  void state(State& state) override { state.add("counts", counts_, Role::scoring); }

 private:
  torch::Tensor counts_;
};

/// Takes neither users without train rows nor histories.
class Plain : public Model {
 public:
  struct Config {
    void describe(Fields&) {}
  };
  Plain(const Config&, const Context& context)
      : Model(context),
        scores_(parameter("scores", torch::zeros({data_.n_users, data_.n_items}))) {}
  Abilities abilities() const override { return {}; }
  torch::Tensor whole_scores(const Queries& queries) const override {
    return scores_.index_select(0, queries.users).detach();
  }

 private:
  torch::Tensor& scores_;
};

inline const RegisterModel<Factors> registered_factors{"PlantedFactors", "user . item, by hand"};
inline const RegisterModel<Neighbours> registered_neighbours{"PlantedNeighbours", "counted pairs"};
inline const RegisterModel<Plain> registered_plain{"PlantedPlain", "a table of scores"};

inline Dataset shop() {
  const std::vector<int32_t> users = {0, 0, 1, 1}, items = {0, 1, 1, 2};
  const std::vector<int32_t> ann = {0}, bob = {1}, cat = {2}, cider = {2}, eggs = {4};
  Feature image;
  image.name = "image";
  image.rows =
      MappedArray(torch::tensor({{2.F, 0.F}, {1.F, 0.F}, {0.F, 1.F}, {1.F, 1.F}, {3.F, 4.F}}));
  image.row_of_item = torch::tensor({1, 2, 3, -1, 0, 4}, torch::kInt32);
  image.manifest = {{"encoder", {{"name", "by hand"}}}};
  Dataset data = make_dataset(4, 6, make_interactions(4, users, items),
                              make_interactions(4, ann, cider), {}, {std::move(image)});
  data.name = "shop";
  data.history = make_interactions(4, cat, cider);
  data.seen = make_interactions(4, bob, eggs);
  data.user_ids = data.item_ids = {};
  for (const char* id : {"ann", "bob", "cat", "dan"}) data.user_ids.add(id);
  for (const char* id : {"apple", "bread", "cider", "dates", "eggs", "figs"}) data.item_ids.add(id);
  data.item_columns.names = {"title", "categories", "is_hidden"};
  data.item_columns.values = {{"Apple", "Bread", "Cider", "Dates", "Eggs", "Figs"},
                              {"fruit", "", "drink", "fruit", "", "fruit"},
                              {"", "", "", "", "", "true"}};
  return data;
}

/// A trained model of that name, on `data`.
inline std::unique_ptr<Model> trained(const std::string& name, const Dataset& data,
                                      const Settings& given = {}) {
  const ModelInfo& info = find_model(name);
  const RunSettings settings = resolve_settings(info, given);
  auto model = info.make(given, {data.view(), Random(1), settings.train_settings, {}});
  model->prepare({});
  State state;
  model->state(state);
  State::Saved saved = state.save();
  auto set = [&](const char* key, const torch::Tensor& value) {
    if (saved.weights.contains(key)) saved.weights[key] = value;
  };
  set("users", torch::tensor({{1.F, 0.F}, {0.F, 1.F}, {7.F, 7.F}, {7.F, 7.F}}));
  set("items",
      torch::tensor({{1.F, 0.F}, {.5F, .5F}, {0.F, 1.F}, {.9F, .1F}, {.2F, .8F}, {2.F, 2.F}}));
  state.load(saved);
  return model;
}

inline void save(const std::string& name, const std::filesystem::path& folder,
                 const Settings& given = {}) {
  const Dataset data = shop();
  const auto model = trained(name, data, given);
  save_bundle(folder, *model, data, find_model(name), resolve_settings(find_model(name), given),
              {{"test", {{"recall@20", 0.25}}}});
}

}  // namespace tessera::planted

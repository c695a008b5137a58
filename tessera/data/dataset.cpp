#include "tessera/data/dataset.h"

#include <algorithm>
#include <string>

#include "tessera/base/error.h"
#include "tessera/data/rows.h"

namespace tessera {
namespace {

void fill_defaults(Dataset& data) {
  const Interactions none = make_interactions(data.n_users, {}, {});
  for (Interactions* part : {&data.train, &data.valid, &data.test, &data.history, &data.seen}) {
    if (!part->offsets.defined()) *part = none;
  }
  data.train_distinct = sorted_distinct(data.train);
}

}  // namespace

const char* split_name(Split split) {
  switch (split) {
    case Split::train:
      return "train";
    case Split::valid:
      return "valid";
    case Split::test:
      return "test";
    case Split::history:
      return "history";
    case Split::seen:
      return "seen";
    case Split::none:
      break;
  }
  return "none";
}

const std::vector<std::string>* ItemColumns::find(const std::string& name) const {
  const auto place = std::find(names.begin(), names.end(), name);
  return place == names.end() ? nullptr : &values[place - names.begin()];
}

const std::vector<std::string>* ItemColumns::titles() const {
  for (const char* wanted : {"title", "name"}) {
    for (size_t column = 0; column < names.size(); ++column) {
      if (squeezed(names[column]) == wanted) return &values[column];
    }
  }
  return nullptr;
}

std::string ItemColumns::title(int64_t item) const {
  const auto* all = titles();
  return all != nullptr ? (*all)[item] : "";
}

bool ItemColumns::hidden(int64_t item) const {
  const auto* flags = find("is_hidden");
  if (!flags) return false;
  const std::string flag = squeezed((*flags)[item]);
  return flag == "1" || flag == "true" || flag == "yes";
}

const Feature* TrainView::feature(const std::string& modality) const {
  for (const Feature& each : features) {
    if (each.name == modality) return &each;
  }
  return nullptr;
}

Dataset make_dataset(int64_t n_users, int64_t n_items, Interactions train, Interactions valid,
                     Interactions test, std::vector<Feature> features) {
  Dataset data;
  data.name = "memory";
  data.n_users = n_users;
  data.n_items = n_items;
  data.train = std::move(train);
  data.valid = std::move(valid);
  data.test = std::move(test);
  data.features = std::move(features);
  for (int64_t u = 0; u < n_users; ++u) data.user_ids.add(std::to_string(u));
  for (int64_t i = 0; i < n_items; ++i) data.item_ids.add(std::to_string(i));
  data.about = {{"name", data.name}, {"split", {{"kind", "given"}}}};
  fill_defaults(data);
  return data;
}

namespace {

/// Rows of several kinds, user by user in the order of the kinds.
Interactions joined(int64_t n_users, std::initializer_list<const Interactions*> kinds) {
  std::vector<int32_t> users, items;
  for (int64_t user = 0; user < n_users; ++user) {
    for (const Interactions* rows : kinds) {
      if (user >= rows->n_users()) continue;
      const auto row = rows->of(user);
      items.insert(items.end(), row.begin(), row.end());
      users.insert(users.end(), row.size(), static_cast<int32_t>(user));
    }
  }
  return make_interactions(n_users, users, items);
}

}  // namespace

Interactions held_out(const Dataset& data) {
  return joined(data.n_users, {&data.valid, &data.test});
}

Interactions known_rows(const Dataset& data) {
  if (data.known.offsets.defined()) return data.known;
  return joined(data.n_users, {&data.train, &data.valid, &data.history, &data.seen});
}

std::string train_sha256(const TrainView& data) {
  return pairs_sha256(data.user_ids, data.item_ids, false, [&](int32_t user, UserPairs& pairs) {
    for (const int32_t item : data.train.of(user)) pairs.emplace_back(item, Split::train);
  });
}

}  // namespace tessera

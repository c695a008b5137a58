#include "tessera/data/dataset.h"

#include <algorithm>
#include <string>

#include "tessera/base/error.h"
#include "tessera/data/pair_hash.h"

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

std::string ItemColumns::title(int64_t item) const {
  const auto* titles = find("title");
  return titles ? (*titles)[item] : std::string();
}

bool ItemColumns::hidden(int64_t item) const {
  const auto* flags = find("is_hidden");
  if (!flags) return false;
  const std::string flag = squeezed((*flags)[item]);
  return flag == "1" || flag == "true" || flag == "yes";
}

const Feature* Dataset::feature(const std::string& modality) const {
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

std::string train_sha256(const Dataset& data) {
  PairHash hash(data.user_ids, data.item_ids, false);
  hash.reserve(data.train.n_rows());
  for (int64_t user = 0; user < data.train.n_users(); ++user) {
    for (const int32_t item : data.train.of(user)) hash.add(static_cast<int32_t>(user), item);
  }
  return hash.hex();
}

}  // namespace tessera

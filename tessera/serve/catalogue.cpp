#include "tessera/serve/catalogue.h"

#include "tessera/base/error.h"

namespace tessera {

Catalogue::Catalogue(std::shared_ptr<const Dataset> data)
    : data_(std::move(data)),
      titles_(data_->item_columns.titles()),
      hidden_(torch::zeros({data_->n_items}, torch::kBool)) {
  auto* hidden = hidden_.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < data_->n_items; ++i) hidden[i] = data_->item_columns.hidden(i);
}

std::shared_ptr<const Catalogue> Catalogue::with(const NewItems& items) const {
  auto out = std::make_shared<Catalogue>(*this);
  const int64_t n = items.ids.size();
  for (int64_t i = 0; i < n; ++i) {
    if (find(items.ids[i]) >= 0) {
      throw usage_error("item '{}' is there already", printable(items.ids[i]));
    }
    out->added_.add(items.ids[i]);
  }
  if (!items.titles.empty()) {
    out->added_titles_.resize(static_cast<size_t>(added_.size()));
    out->added_titles_.insert(out->added_titles_.end(), items.titles.begin(), items.titles.end());
  }
  out->hidden_ = torch::cat({hidden_, torch::zeros({n}, torch::kBool)});
  return out;
}

int64_t Catalogue::find(std::string_view id) const {
  const int64_t item = data_->item_ids.find(id);
  if (item >= 0) return item;
  const int64_t added = added_.find(id);
  return added < 0 ? -1 : data_->n_items + added;
}

std::string_view Catalogue::id(int64_t item) const {
  return item < data_->n_items ? data_->item_ids[item] : added_[item - data_->n_items];
}

std::string_view Catalogue::title(int64_t item) const {
  if (item < data_->n_items) {
    return titles_ != nullptr ? std::string_view((*titles_)[static_cast<size_t>(item)]) : "";
  }
  const auto at = static_cast<size_t>(item - data_->n_items);
  return at < added_titles_.size() ? std::string_view(added_titles_[at]) : "";
}

std::string Catalogue::nearest(const std::string& id) const {
  auto candidates = data_->item_ids.near(id);
  for (auto& added : added_.near(id)) candidates.push_back(std::move(added));
  return did_you_mean(id, candidates);
}

}  // namespace tessera

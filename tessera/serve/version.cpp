#include "tessera/serve/version.h"

#include "tessera/base/error.h"
#include "tessera/model/offers.h"
#include "tessera/ops/unit_rows.h"

namespace tessera {
namespace {

torch::Tensor unit_items_of(const Scorer& scorer) {
  const torch::Tensor vectors = scorer.item_vectors();
  if (!vectors.defined()) return {};
  return unit_rows(vectors.to(torch::kFloat)).contiguous();
}

}  // namespace

std::shared_ptr<const Version> make_version(Bundle bundle) {
  const torch::NoGradGuard no_gradients;
  auto out = std::make_shared<Version>();
  out->model = bundle.about.value("model", "the model");
  out->data = std::move(bundle.data);
  out->trained = std::move(bundle.model);
  out->scorer = std::move(bundle.scorer);
  out->catalogue = std::make_shared<const Catalogue>(out->data);
  out->seen = sorted_distinct(out->data->known);
  out->unit_items = unit_items_of(*out->scorer);
  out->unread = std::move(bundle.unread);
  return out;
}

std::shared_ptr<const Version> with_items(const Version& version, const NewItems& items) {
  const torch::NoGradGuard no_gradients;
  auto* encoder = version.trained != nullptr ? version.trained->offers().items : nullptr;
  if (encoder == nullptr) {
    throw usage_error("{} cannot rank items that it was not trained with{}", version.model,
                      version.trained != nullptr ? "" : ", as it was loaded to answer only");
  }
  const std::lock_guard lock(*version.taking);  // a model takes new items one call after the other
  auto out = std::make_shared<Version>(version);
  out->catalogue = version.catalogue->with(items);
  out->scorer = encoder->with_items(*version.scorer, items.features, items.ids.size());
  out->unit_items = unit_items_of(*out->scorer);
  return out;
}

}  // namespace tessera

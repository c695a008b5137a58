#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tessera/model/bundle.h"
#include "tessera/serve/catalogue.h"

namespace tessera {

/// A loaded bundle made ready to answer: immutable, so that many threads may read it, and exchanged
/// whole.
struct Version {
  std::string model;  ///< its name
  std::shared_ptr<const Scorer> scorer;
  std::shared_ptr<const Catalogue> catalogue;
  std::shared_ptr<const Dataset> data;  ///< of the training: users, rows, features
  Interactions seen;                    ///< sorted_distinct(data->known)
  /// Item vectors at length 1, [n_items, d]; rows of zeros stay. Undefined where there are none.
  torch::Tensor unit_items;
  std::vector<std::string> unread;  ///< modalities whose rows may not be read
  std::shared_ptr<Model> trained;   ///< null where stored vectors answer
  std::shared_ptr<std::mutex> taking = std::make_shared<std::mutex>();  ///< `trained` takes items
};

std::shared_ptr<const Version> make_version(Bundle bundle);

/// The same with more items, ranked by their features; exit 2 where the model cannot take them.
std::shared_ptr<const Version> with_items(const Version& version, const NewItems& items);

}  // namespace tessera

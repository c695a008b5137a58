#pragma once

#include <torch/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/data/safetensors.h"
#include "tessera/ops/adam.h"

namespace tessera {

/// Where a piece of state goes and who changes it. `scoring` goes to weights.safetensors and the
/// bundle; the others to optimizer.safetensors: `training` is trained by the trainer but not read
/// when ranking, `inner` is trained by the model itself, `frozen` cannot be rebuilt from the
/// dataset.
enum class Role { scoring, training, inner, frozen };

/// Names every tensor, table, optimiser moment and counter of a model or trainer; the same list
/// serves saving and loading.
class State {
 public:
  void add(const std::string& name, torch::Tensor& value, Role role);
  void add(const std::string& name, RowTable& table, Role role);
  void add(const std::string& name, DenseAdam& adam, Role role);
  void add(const std::string& name, int64_t& value, Role role);
  void add(const std::string& name, double& value, Role role);
  void add(const std::string& name, Json& value, Role role);

  /// Splits what was named into the two files' tensors and the JSON of state.json.
  struct Saved {
    TensorMap weights, optimizer;
    Json values = Json::object();
  };
  /// With `weights_only` what ranking needs and nothing else: the best snapshot, the bundle.
  Saved save(bool weights_only = false) const;
  /// Assigns everything named; exit 3 naming what is missing or has another shape than is there
  /// (an undefined tensor takes any shape). With `weights_only` the other roles are left alone.
  void load(const Saved& saved, bool weights_only = false);

  struct Entry {
    std::string name;
    Role role;
    std::function<void(Saved&, bool weights_only)> save;
    std::function<void(const Saved&)> load;
  };
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

}  // namespace tessera

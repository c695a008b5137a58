#include "tessera/model/registry.h"

namespace tessera {
namespace {

/// Popularity: score(u, i) = number of train rows of i, the same for every user.
class Popularity : public Model {
 public:
  struct Config {
    void describe(Fields&) {}
  };
  Popularity(const Config&, const Context& context)
      : Model(context), counts_(torch::zeros({context.data.n_items})) {}

  Abilities abilities() const override { return {}; }
  void prepare(const Watch&) override {
    counts_ = item_counts(data_.train, data_.n_items).to(torch::kFloat);
  }
  torch::Tensor score(const Queries& queries) override {
    return counts_.expand({queries.size(), data_.n_items});
  }
  void state(State& state) override { state.add("counts", counts_, Role::scoring); }

 private:
  torch::Tensor counts_;  // [n_items]
};

const RegisterModel<Popularity> registered{
    "Popularity", "Popularity, number of train interactions", {{"Pop", {}}, {"MostPop", {}}}};

}  // namespace
}  // namespace tessera

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
  void state(State& state) override { state.add("counts", counts_, Role::scoring); }

 protected:
  std::shared_ptr<const Scorer> make_scorer() override {
    return std::make_shared<CountScorer>(facts(), abilities(), counts_);
  }

 private:
  /// The same for everybody.
  class CountScorer final : public Scorer {
   public:
    CountScorer(std::shared_ptr<const TrainFacts> facts, const Abilities& abilities,
                const torch::Tensor& counts)
        : Scorer(std::move(facts), abilities), counts_(counts.unsqueeze(1)) {}
    bool personal() const override { return false; }
    Via via(int64_t, bool) const override { return Via::popular; }
    int64_t block(int64_t wanted) const override { return std::max<int64_t>(1, wanted); }

   protected:
    BlockScores own(const Queries& queries) const override {
      return BlockScores(Vectors{torch::ones({queries.size(), 1}), counts_});
    }

   private:
    const torch::Tensor counts_;  // [n_items, 1]
  };

  torch::Tensor counts_;  // [n_items]
};

const RegisterModel<Popularity> registered{
    "Popularity", "Popularity, number of train interactions", {{"Pop", {}}, {"MostPop", {}}}};

}  // namespace
}  // namespace tessera

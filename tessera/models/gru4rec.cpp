#include "tessera/model/registry.h"
#include "tessera/model/sequence_model.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"

namespace tessera {
namespace {

/// GRU4Rec in the line of Tan et al. (DLRS 2016) as public frameworks have it: a GRU over the
/// history, an output map, the full softmax at every position. The stream-parallel batches and
/// ranking losses of the 2015 original are not meant.
class Gru4Rec : public SequenceModel {
 public:
  struct Config {
    SequenceSettings sequence;
    int64_t embedding_size = 64, hidden_size = 128;
    double dropout = 0.3;

    void describe(Fields& f) {
      sequence.describe(f);
      f.add("embedding_size", embedding_size, "width of the embeddings", at_least(1));
      f.add("hidden_size", hidden_size, "units of the GRU", at_least(1));
      f.add("dropout", dropout, "rate on the embeddings of the history", between(0, 0.95));
    }

    /// RecBole's list.
    static SearchSpace search() {
      return {{"learning_rate", {5e-4, 1e-3, 5e-3}},
              {"hidden_size", {64, 128, 256}},
              {"dropout", {0.1, 0.3, 0.5}}};
    }
  };

  Gru4Rec(const Config& config, const Context& context)
      : SequenceModel(config.sequence, context),
        config_(config),
        items_(item_rows(
            xavier_normal(data_.n_items, config.embedding_size, random_.stream("init.item")))),
        encoder_("encoder", config.embedding_size, config.hidden_size, maker(), random_) {}

 protected:
  torch::Tensor encode(const torch::Tensor& items, const Pass& pass) override {
    return encoder_(dropout(items_.rows(items), config_.dropout, pass, "input"), pass);
  }
  torch::Tensor candidates() override { return items_.all(); }

 private:
  const Config config_;
  ItemRows& items_;  // [n_items, d]
  GruEncoder encoder_;
};

const RegisterModel<Gru4Rec> registered{"GRU4Rec", "GRU4Rec, Tan et al. 2016"};

}  // namespace
}  // namespace tessera

#include <algorithm>
#include <map>

#include "tessera/base/error.h"
#include "tessera/model/registry.h"
#include "tessera/model/sequence_model.h"
#include "tessera/nn/correlation.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"

namespace tessera {
namespace {

/// FDSA (Zhang et al., IJCAI 2019): one causal encoder over the items and one over what is known of
/// them, joined at every position. A field is a column of items.tsv (its categories' mean
/// embedding) or a modality (a linear map of its rows); an item's fields are mixed by attention
/// over those it has.
class Fdsa : public SequenceModel {
 public:
  struct Config {
    SequenceSettings sequence;
    std::vector<std::string> fields;
    int64_t embedding_size = 64, inner_size = 256, n_layers = 2, n_heads = 2;
    double hidden_dropout = 0.5, attention_dropout = 0.5, layer_norm_eps = 1e-12;
    bool shared_ln = true;

    void describe(Fields& f) {
      sequence.describe(f);
      f.list("fields", fields,
             "columns of items.tsv with categories, a|b; empty: categories where there is one");
      f.add("embedding_size", embedding_size, "width of the embeddings", at_least(1));
      f.add("inner_size", inner_size, "width inside the feed-forward layers", at_least(1));
      f.add("n_layers", n_layers, "blocks of each encoder", between(0, 64));
      f.add("n_heads", n_heads, "attention heads; a divisor of embedding_size", at_least(1));
      f.add("hidden_dropout", hidden_dropout, "rate on embeddings and layers", between(0, 0.95));
      f.add("attention_dropout", attention_dropout, "rate on attention weights", between(0, 0.95));
      f.add("layer_norm_eps", layer_norm_eps, "added to the variance", above(0));
      f.add("shared_ln", shared_ln, "one layer norm for both inputs and the output");
    }

    /// RecBole's list.
    static SearchSpace search() {
      return {{"n_layers", {1, 2}},
              {"n_heads", {1, 2}},
              {"hidden_dropout", {0.2, 0.5}},
              {"attention_dropout", {0.2, 0.5}}};
    }
  };

  Fdsa(const Config& config, const Context& context)
      : SequenceModel(config.sequence, context),
        config_(config),
        items_(item_rows(table_of("item", data_.n_items))),
        positions_(parameter("position_embedding", table_of("position", sequence_.max_length))) {
    const int64_t d = config.embedding_size;
    if (d % config.n_heads != 0) {
      throw usage_error("FDSA.n_heads must divide embedding_size {}, got {}", d, config.n_heads);
    }
    add_categories();
    for (const auto& feature : data_.features) {
      fields_.emplace_back();
      fields_.back().feature = &feature;
      fields_.back().map = Linear(feature.name + ".map", d, feature.width(), maker(), random_);
    }
    if (fields_.empty()) {
      throw data_error(
          "FDSA needs item features or a column 'categories' and '{}' has neither; add some with "
          "'tessera import --feature NAME=FILE' or `items` FILE",
          data_.name);
    }
    mix_hidden_ = Linear("mix.hidden", d, d, maker(), random_);
    mix_out_ = &parameter("mix.out", table_of("mix.out", 1));
    TransformerOptions options;
    options.norm = TransformerOptions::Norm::post;
    options.width = d;
    options.inner = config.inner_size;
    options.n_layers = config.n_layers;
    options.n_heads = config.n_heads;
    options.hidden_dropout = config.hidden_dropout;
    options.attention_dropout = config.attention_dropout;
    options.eps = config.layer_norm_eps;
    options.gelu = true;
    item_encoder_ = Transformer("item_encoder", options, maker(), random_);
    field_encoder_ = Transformer("field_encoder", options, maker(), random_);
    join_ = Linear("join", d, 2 * d, maker(), random_);
    item_norm_ = LayerNorm("norm", d, config.layer_norm_eps, maker());
    field_norm_ = last_norm_ = item_norm_;
    if (!config.shared_ln) {
      field_norm_ = LayerNorm("field_norm", d, config.layer_norm_eps, maker());
      last_norm_ = LayerNorm("last_norm", d, config.layer_norm_eps, maker());
    }
  }

  Abilities abilities() const override {
    return {.uses_features = !data_.features.empty(),
            .score_reads_features = !data_.features.empty(),
            .takes_histories = true};
  }

 protected:
  torch::Tensor encode(const torch::Tensor& items, const Pass& pass) override {
    const auto* from = items.const_data_ptr<int64_t>();
    std::vector<int64_t> distinct(from, from + items.numel());
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    const auto nodes = torch::tensor(distinct, torch::kInt64);
    const auto inverse = torch::searchsorted(nodes, items);
    const auto where =
        gather_rows(positions_, position_index(pass.offsets, sequence_.max_length, false));
    const auto known = gather_rows(mixed_fields(nodes), inverse);
    const auto input = [&](const torch::Tensor& x, const LayerNorm& norm, const char* name) {
      return dropout(norm(x + where), config_.hidden_dropout, pass, name);
    };
    const auto by_item = item_encoder_(input(items_.rows(items), item_norm_, "items"), pass);
    const auto by_field = field_encoder_(input(known, field_norm_, "fields"), pass);
    return dropout(last_norm_(join_(torch::cat({by_item, by_field}, 1))), config_.hidden_dropout,
                   pass, "join");
  }
  torch::Tensor candidates() override { return items_.all(); }

 private:
  /// A modality, or a column: the categories of each item as rows of a table.
  struct Field {
    const Feature* feature = nullptr;
    Linear map;
    torch::Tensor* table = nullptr;            // [n_values, d]
    std::vector<std::vector<int64_t>> values;  // by item
  };

  torch::Tensor table_of(const std::string& name, int64_t rows) const {
    return normal(rows, config_.embedding_size, 0, 0.02, random_.stream("init." + name));
  }

  void add_categories() {
    std::vector<std::string> columns = config_.fields;
    if (columns.empty() && data_.item_columns.find("categories") != nullptr) {
      columns = {"categories"};
    }
    for (const auto& name : columns) {
      const auto* cells = data_.item_columns.find(name);
      if (cells == nullptr) {
        throw usage_error("FDSA.fields: items have no column '{}'{}", printable(name),
                          did_you_mean(name, data_.item_columns.names));
      }
      Field field;
      field.values.resize(static_cast<size_t>(data_.n_items));
      std::map<std::string, int64_t> ids;
      for (size_t item = 0; item < field.values.size(); ++item) {
        const std::string& cell = (*cells)[item];
        for (size_t begin = 0; begin <= cell.size();) {
          const size_t end = std::min(cell.find('|', begin), cell.size());
          if (end > begin) {
            const auto id = static_cast<int64_t>(ids.size());
            field.values[item].push_back(
                ids.emplace(cell.substr(begin, end - begin), id).first->second);
          }
          begin = end + 1;
        }
      }
      if (ids.empty()) continue;
      field.table =
          &parameter("field." + name, table_of("field." + name, static_cast<int64_t>(ids.size())));
      fields_.push_back(std::move(field));
    }
  }

  /// sum_f a_f u_f of the items' present fields; zero without any. [n, d]
  torch::Tensor mixed_fields(const torch::Tensor& nodes) const {
    const int64_t n = nodes.size(0), d = config_.embedding_size;
    const auto like = positions_.options().requires_grad(false);
    const auto type = positions_.scalar_type();
    std::vector<torch::Tensor> inputs, present;
    for (const Field& field : fields_) {
      if (field.feature != nullptr) {
        const auto rows = field.feature->row_of_item.index_select(0, nodes);
        present.push_back(rows >= 0);
        inputs.push_back(field.map(field.feature->gather(nodes).to(type)) *
                         present.back().to(type).unsqueeze(1));
        continue;
      }
      std::vector<int64_t> values, owners;
      torch::Tensor share = torch::zeros({n}, like);
      for (int64_t i = 0; i < n; ++i) {
        const auto& own = field.values[static_cast<size_t>(nodes.const_data_ptr<int64_t>()[i])];
        values.insert(values.end(), own.begin(), own.end());
        owners.insert(owners.end(), own.size(), i);
        if (!own.empty()) share[i] = 1.0 / static_cast<double>(own.size());
      }
      present.push_back(share > 0);
      const auto owner = torch::tensor(owners, torch::kInt64);
      const auto rows = gather_rows(*field.table, torch::tensor(values, torch::kInt64)) *
                        share.index_select(0, owner).unsqueeze(1);
      inputs.push_back(torch::zeros({n, d}, like).index_add(0, owner, rows));
    }
    // An item without any field: its first one, which is zero, takes the whole weight.
    auto some = present[0];
    for (const auto& p : present) some = some.logical_or(p);
    present[0] = present[0].logical_or(some.logical_not());
    return gate(inputs, present, *mix_hidden_.weight, *mix_hidden_.bias, *mix_out_, {}).h;
  }

  const Config config_;
  ItemRows& items_;           // [n_items, d]
  torch::Tensor& positions_;  // [max_length, d]
  std::vector<Field> fields_;
  Linear mix_hidden_, join_;
  torch::Tensor* mix_out_ = nullptr;  // [1, d]; its bias would move all energies alike
  LayerNorm item_norm_, field_norm_, last_norm_;
  Transformer item_encoder_, field_encoder_;
};

const RegisterModel<Fdsa> registered{"FDSA", "FDSA, Zhang et al. 2019"};

}  // namespace
}  // namespace tessera

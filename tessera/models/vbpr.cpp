#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/model/common_settings.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/registry.h"
#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

constexpr int64_t kRankedRows = 4096;  // float16 rows widened at once for ranking

/// rows [n, 2d]: ids [n, d] and the first d columns of content beside them; offsets [n]: bias [n,
/// 1] and the last column of content [n, d + 1]. Without a bias content is [n, d] and offsets are
/// empty.
class Joined : public torch::autograd::Function<Joined> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const torch::Tensor& ids,
                                                const torch::Tensor& content,
                                                const torch::Tensor& bias) {
    const int64_t n = ids.size(0), d = ids.size(1), width = content.size(1);
    auto rows = torch::empty({n, 2 * d}, ids.options());
    auto offsets = torch::empty({width > d ? n : 0}, ids.options());
    by_type(ids, [&](auto type) {
      using T = decltype(type);
      const T *left = ids.const_data_ptr<T>(), *right = content.const_data_ptr<T>();
      const T* own = bias.const_data_ptr<T>();
      T *to = rows.mutable_data_ptr<T>(), *offset = offsets.mutable_data_ptr<T>();
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          std::copy_n(left + i * d, d, to + 2 * i * d);
          std::copy_n(right + i * width, d, to + (2 * i + 1) * d);
          if (width > d) offset[i] = own[i] + right[i * width + d];
        }
      });
    });
    context->saved_data["width"] = width;
    return {rows, offsets};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list upstream) {
    const auto rows = upstream[0].contiguous(), offsets = upstream[1].contiguous();
    const int64_t n = rows.size(0), d = rows.size(1) / 2;
    const int64_t width = context->saved_data["width"].toInt();
    auto ids = torch::empty({n, d}, rows.options());
    auto content = torch::empty({n, width}, rows.options());
    by_type(rows, [&](auto type) {
      using T = decltype(type);
      const T *from = rows.const_data_ptr<T>(), *offset = offsets.const_data_ptr<T>();
      T *left = ids.mutable_data_ptr<T>(), *right = content.mutable_data_ptr<T>();
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          std::copy_n(from + 2 * i * d, d, left + i * d);
          std::copy_n(from + (2 * i + 1) * d, d, right + i * width);
          if (width > d) right[i * width + d] = offset[i];
        }
      });
    });
    return {ids, content, width > d ? offsets.unsqueeze(1) : torch::Tensor()};
  }

 private:
  static constexpr int64_t kGrain = 64;  // rows a thread takes at least
};

torch::autograd::variable_list join_rows(const torch::Tensor& ids, const torch::Tensor& content,
                                         const torch::Tensor& bias) {
  if (!composed(ids)) return Joined::apply(ids, content, bias);
  const int64_t d = ids.size(1);
  return {torch::cat({ids, content.narrow(1, 0, d)}, 1),
          content.size(1) > d ? bias.squeeze(1) + content.select(1, d)
                              : torch::empty({0}, ids.options())};
}

/// VBPR (He & McAuley, AAAI 2016): BPR-MF plus the raw features through a learned projection,
///   score = b_i + g_u . g_i + t_u . (E f_i) + w . f_i,
/// f the concatenated frozen features. Items without a train row have g_i = 0 and are ranked by
/// content. variant = released is MMRec's form: one 2d-wide user row, [item ID ; E f + c], no b and
/// no w, norms of the wide rows as penalty.
class Vbpr : public FactorModel, public ItemEncoder {
 public:
  struct Config {
    std::string variant = "paper";
    int64_t embedding_size = 64;
    double reg_weight = 1e-2;
    double reg_bias = 1e-2;
    double reg_visual = 0;
    std::string reg = "squared";
    std::string visual = "linear";
    std::string missing = "zero";
    int64_t n_negatives = 1;

    void describe(Fields& f) {
      f.choice("variant", variant, "the paper's form, or the published code's",
               {"paper", "released"});
      f.add("embedding_size", embedding_size, "width of the ID part and of the content part",
            at_least(1));
      common::reg_weight(f, reg_weight, "the penalty on the batch's rows");
      f.add("reg_bias", reg_bias, "weight of the penalty on the item biases", at_least(0));
      f.add("reg_visual", reg_visual, "weight of the penalty on E and w", at_least(0));
      f.choice("reg", reg, "squared: ID rows, sum of squares / 2B; norm: whole rows, norms / B",
               {"squared", "norm"});
      f.choice("visual", visual,
               "linear: item bias and w beside E; projection: E with a bias instead",
               {"linear", "projection"});
      common::missing(f, missing);
      common::n_negatives(f, n_negatives);
      f.alias("d", {"embedding_size"});
      f.preset("variant", "released", {{"reg", "norm"}, {"visual", "projection"}});
    }

    static SearchSpace search() { return {{"reg_weight", {1e-1, 1e-2, 1e-3, 1e-4, 1e-5}}}; }
  };

  Vbpr(const Config& config, const Context& context)
      : FactorModel(context),
        config_(config),
        linear_(config.visual == "linear"),
        features_(concatenated(config)) {
    const int64_t d = config.embedding_size, width = features_.size(1);
    const auto initial = [&](const std::string& name, int64_t rows, int64_t cols) {
      const Random random = random_.stream("init." + name);
      return linear_ ? xavier_uniform(rows, cols, random) : xavier_normal(rows, cols, random);
    };
    users_ = &table("user_embedding",
                    linear_ ? torch::cat({initial("user_id", data_.n_users, d),
                                          initial("user_visual", data_.n_users, d)},
                                         1)
                            : initial("user", data_.n_users, 2 * d),
                    Role::scoring, Axis::by_user);
    items_ = &table("item_embedding", initial("item_id", data_.n_items, d), Role::scoring,
                    Axis::by_item);
    projection_ = &parameter("projection", initial("projection", d, width));
    if (linear_) {
      item_bias_ =
          &table("item_bias", torch::zeros({data_.n_items, 1}), Role::scoring, Axis::by_item);
      visual_bias_ = &parameter("visual_bias", initial("visual_bias", 1, width));
    } else {
      projection_bias_ = &parameter("projection_bias", torch::zeros({d}));
    }
  }

  Abilities abilities() const override {
    return {.uses_features = true, .score_reads_features = true, .ranks_cold_items = true};
  }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = config_.n_negatives};
  }

  Loss loss(const Batch& batch) override {
    const auto users = users_->gather(batch.distinct_users);
    const auto ids = items_->gather(batch.distinct_items);
    const auto f = features_.index_select(0, batch.distinct_items).to(torch::kFloat);
    const Triples at{batch.user_inverse, batch.positive_inverse, batch.negative_inverse};
    // Items as [ID ; E f], users as [g ; t]: the score is one inner product and the item's offset.
    const auto bias =
        linear_ ? item_bias_->gather(batch.distinct_items) : torch::empty({0, 1}, ids.options());
    const auto joined = join_rows(ids, content(f), bias);
    const auto &rows = joined[0], &offsets = joined[1];
    const auto bpr = bpr_loss(users, rows, at, offsets);
    Loss out{bpr, {{"bpr", bpr}}};
    const auto reg = config_.reg == "norm" ? norm_rows(users, rows, at, batch.size())
                                           : l2_rows(users, ids, at, batch.size());
    out.total = out.total + config_.reg_weight * reg;
    out.parts.emplace_back("reg", reg);
    if (linear_ && config_.reg_bias > 0) {
      const auto reg_bias = l2_rows(bias, {at.positives, at.negatives}, batch.size());
      out.total = out.total + config_.reg_bias * reg_bias;
      out.parts.emplace_back("reg_bias", reg_bias);
    }
    if (config_.reg_visual > 0) {
      auto squares = projection_->square().sum();
      if (linear_) squares = squares + visual_bias_->square().sum();
      out.total = out.total + config_.reg_visual * squares / 2;
      out.parts.emplace_back("reg_visual", squares / 2);
    }
    return out;
  }

  Offers offers() override { return {.items = this}; }
  std::shared_ptr<const Scorer> with_items(const Scorer& scorer,
                                           const std::vector<Feature>& features,
                                           int64_t n) override {
    const torch::NoGradGuard no_grad;
    const auto f = side_by_side(rows_of_new_items(data_, features, n, config_.missing));
    const auto ids = torch::zeros({n, config_.embedding_size});
    return dynamic_cast<const VectorScorer&>(scorer).with_items(torch::cat({ids, content(f)}, 1));
  }

 protected:
  Vectors vectors() override {
    const auto trained =
        (item_counts(data_.train, data_.n_items) > 0).to(torch::kFloat).unsqueeze(1);
    torch::Tensor users = users_->value(), seen = content_of_all();
    if (linear_) {
      seen.select(1, projection_->size(0)).add_((item_bias_->value() * trained).flatten());
      users = torch::cat({users, torch::ones({data_.n_users, 1})}, 1);
    }
    return {users, torch::cat({items_->value() * trained, seen}, 1)};
  }

 private:
  /// The features side by side [n_items, sum of widths]; the published code puts text first.
  /// float16 where all files are and no gap needs another number, else float32.
  torch::Tensor concatenated(const Config& config) const {
    require_features(data_, "VBPR");
    const bool halves =
        std::all_of(data_.features.begin(), data_.features.end(), [&](const Feature& feature) {
          return feature.rows.dtype() == torch::kHalf &&
                 (config.missing == "zero" || feature.present().all().item<bool>());
        });
    std::vector<torch::Tensor> parts;
    for (const auto& feature : data_.features) {
      auto rows = filled(data_, feature, config.missing);
      if (halves) rows = rows.to(torch::kHalf);  // as they were in the file
      parts.push_back(rows);
    }
    return side_by_side(parts);
  }

  /// [n, sum of widths] of rows by modality.
  torch::Tensor side_by_side(std::vector<torch::Tensor> rows) const {
    for (size_t m = 1; m < rows.size(); ++m) {
      if (config_.variant != "released" || data_.features[m].name != "text") continue;
      std::rotate(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(m),
                  rows.begin() + static_cast<std::ptrdiff_t>(m) + 1);
    }
    return torch::cat(rows, 1);
  }

  torch::Tensor content_of_all() const {
    const bool halves = features_.scalar_type() == torch::kHalf;
    std::vector<torch::Tensor> parts;
    for (const auto& rows : features_.split(halves ? kRankedRows : data_.n_items)) {
      parts.push_back(content(rows.to(torch::kFloat)));
    }
    return torch::cat(parts);
  }

  /// E f of each row, and beta' f as one column more where there is one: one pass over f.
  torch::Tensor content(const torch::Tensor& f) const {
    if (linear_) return f.matmul(torch::cat({*projection_, *visual_bias_}).t());
    return f.matmul(projection_->t()) + *projection_bias_;
  }

  const Config config_;
  const bool linear_;
  const torch::Tensor features_;  // [n_items, width]
  RowTable* users_ = nullptr;     // [n_users, 2d]: g and t
  RowTable* items_ = nullptr;     // [n_items, d]
  RowTable* item_bias_ = nullptr;
  torch::Tensor* projection_ = nullptr;  // [d, width]
  torch::Tensor* visual_bias_ = nullptr;
  torch::Tensor* projection_bias_ = nullptr;
};

const RegisterModel<Vbpr> registered{"VBPR", "VBPR, He & McAuley 2016"};

}  // namespace
}  // namespace tessera

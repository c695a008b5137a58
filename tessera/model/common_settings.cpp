#include "tessera/model/common_settings.h"

namespace tessera::common {

void embedding_size(Fields& f, int64_t& value) {
  f.add("embedding_size", value, "width of the embeddings, and of what stands beside them",
        at_least(1));
}

void n_layers(Fields& f, int64_t& value) {
  f.add("n_layers", value, "propagation steps over users and items", between(0, 8));
}

void reg_weight(Fields& f, double& value, const std::string& of) {
  f.add("reg_weight", value, "weight of " + of, at_least(0));
}

void n_negatives(Fields& f, int64_t& value) {
  f.add("n_negatives", value, "negatives per positive", at_least(1));
}

void freeze_features(Fields& f, bool& value) {
  f.add("freeze_features", value, "keep the feature tables as they are");
}

void missing(Fields& f, std::string& value) {
  f.choice("missing", value, "rows of items without a modality",
           {"zero", "mean", "neighbours", "error"});
}

}  // namespace tessera::common

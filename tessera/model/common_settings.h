#pragma once

#include <cstdint>
#include <string>

#include "tessera/base/fields.h"

/// Settings that many models have, each described in one place.
namespace tessera::common {

void embedding_size(Fields& f, int64_t& value);
void n_layers(Fields& f, int64_t& value);
/// `of`: what the penalty is on, or which term this weighs.
void reg_weight(Fields& f, double& value, const std::string& of);
void n_negatives(Fields& f, int64_t& value);
void freeze_features(Fields& f, bool& value);
void missing(Fields& f, std::string& value);

}  // namespace tessera::common

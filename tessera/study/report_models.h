#pragma once

#include <string>

#include "tessera/base/json.h"
#include "tessera/data/dataset.h"
#include "tessera/model/model.h"

namespace tessera {

/// What a trained model tells of itself, in numbers: its report, or that of the features it
/// reviewed; null where it tells nothing. `name` is that of the registry.
Json model_facts(const std::string& name, Model& model, const Dataset& data);

/// The sections that only this model has on a page, from its facts: those of the table of pages,
/// else one table of the numbers.
Json model_sections(const std::string& name, const Json& facts);

}  // namespace tessera

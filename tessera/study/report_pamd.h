#pragma once

#include "tessera/base/json.h"

namespace tessera {

/// The sections of PAMD's page, from what it reports: the parts in attention, do they agree, in
/// two dimensions, their neighbours, how separate they are.
Json pamd_sections(const Json& facts);

}  // namespace tessera

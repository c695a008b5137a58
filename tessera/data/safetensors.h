#pragma once

#include <torch/types.h>

#include <filesystem>
#include <map>
#include <string>

#include "tessera/base/json.h"

namespace tessera {

using TensorMap = std::map<std::string, torch::Tensor>;

/// Writes float16/32/64, int32, int64, uint8 and bool tensors of any shape, by name, beside the
/// place and renamed; a full disk leaves the old file and throws RunError.
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const Json& metadata = Json::object());

/// Reads a whole file into fresh tensors. Exit 3 for a truncated file, a header that is not JSON,
/// offsets outside the file or that overlap, an unknown dtype.
TensorMap read_safetensors(const std::filesystem::path& path);

}  // namespace tessera

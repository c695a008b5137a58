#pragma once

#include <torch/types.h>

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/json.h"

namespace tessera {

using TensorMap = std::map<std::string, torch::Tensor>;

/// Where one tensor lies in a .safetensors file.
struct SafetensorsEntry {
  torch::ScalarType dtype = torch::kFloat;
  std::vector<int64_t> shape;
  size_t begin = 0;  ///< from the start of the file
  size_t size = 0;   ///< in bytes, that of shape and dtype
};

/// Reads the head of `file` (the bytes of the whole file) and checks every entry against it: the
/// tensors must fill the file without gap or overlap, as the format demands. Exit 3 otherwise.
std::map<std::string, SafetensorsEntry> parse_safetensors(std::string_view file,
                                                          const std::string& what);

/// Writes float16/32/64, int32, int64, uint8 and bool tensors of any shape, by name, beside the
/// place and renamed; a full disk leaves the old file and throws RunError. Wide numbers come first,
/// then by name, so that each tensor is aligned to its numbers without gaps (which readers refuse).
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const Json& metadata = Json::object());

/// Reads a whole file into fresh tensors. Exit 3 for a truncated file, a header that is not JSON,
/// offsets outside the file or that overlap, an unknown dtype.
TensorMap read_safetensors(const std::filesystem::path& path);

}  // namespace tessera

#pragma once

#include <torch/types.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// The head of a .npy file, checked against the size of the file.
struct NpyHeader {
  torch::ScalarType dtype = torch::kFloat;  ///< kHalf, kFloat, kDouble, kInt or kLong
  std::vector<int64_t> shape;               ///< any number of dimensions
  size_t data_offset = 0;                   ///< the numbers begin here and end with the file
};

/// Reads the head of `file` (the bytes of the whole file): version 1.0 to 3.0, little endian, C
/// order. Exit 3, with `what` as the file's name, for anything else and for a file that is too
/// short or too long for its shape.
NpyHeader parse_npy(std::string_view file, const std::string& what);

/// The bytes before the numbers: version 1.0, aligned to 64.
std::string npy_head(torch::ScalarType dtype, const std::vector<int64_t>& shape);

/// Writes a float16/32/64, int32 or int64 tensor of one or two dimensions beside and renamed.
void write_npy(const std::filesystem::path& path, const torch::Tensor& tensor);

/// Reads a whole small array of one or two dimensions into a fresh tensor.
torch::Tensor read_npy(const std::filesystem::path& path);

}  // namespace tessera

#pragma once

#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "tessera/base/json.h"
#include "tessera/data/vocabulary.h"

namespace tessera {

/// Wider rows are taken for damage.
inline constexpr int64_t kMaxFeatureWidth = 1 << 20;

/// `n` numbers of `dtype` (kHalf, kFloat or kDouble) at `from`, at any alignment, as float32.
void floats_of(torch::ScalarType dtype, const char* from, float* to, int64_t n);

/// A matrix in a file, mapped read-only and never copied whole.
class MappedArray {
 public:
  MappedArray() = default;
  /// A matrix in memory, for tests and features computed in the program; float32 [rows, width].
  explicit MappedArray(torch::Tensor rows);

  int64_t n_rows() const { return n_rows_; }
  int64_t width() const { return width_; }
  torch::ScalarType dtype() const { return dtype_; }  ///< kHalf, kFloat or kDouble
  /// Row `row` as float32 into `to` [width].
  void read_row(int64_t row, float* to) const;
  std::string_view bytes() const {
    return {data_, static_cast<size_t>(n_rows_ * width_ * item_size())};
  }
  int64_t item_size() const;
  /// Gives the file's pages back to the system; they are read again when next touched.
  void forget() const;

 private:
  friend MappedArray map_npy(const std::filesystem::path& path);
  friend MappedArray map_safetensors(const std::filesystem::path& path, const std::string& tensor);
  std::shared_ptr<const void> owner_;  // keeps the mapping alive
  bool in_file_ = false;
  const char* data_ = nullptr;
  int64_t n_rows_ = 0, width_ = 0;
  torch::ScalarType dtype_ = torch::kFloat;
};

/// Version 1.0 to 3.0 .npy, dtype f2, f4 or f8, little endian, C order, [rows, width >= 1]; else
/// exit 3 saying what was found.
MappedArray map_npy(const std::filesystem::path& path);

/// The named tensor (empty: the only two-dimensional one) of a .safetensors file.
MappedArray map_safetensors(const std::filesystem::path& path, const std::string& tensor = "");

/// One modality of the items, for example "image". Rows stay as found in the file.
struct Feature {
  std::string name;           ///< [a-z][a-z0-9_]*
  MappedArray rows;           ///< [n_rows, width]
  torch::Tensor row_of_item;  ///< int32 [n_items], -1 where the item lacks this modality
  Json manifest;              ///< its entry of features.json

  int64_t width() const { return rows.width(); }
  int64_t n_items() const { return row_of_item.size(0); }
  bool has(int64_t item) const { return row_of_item.const_data_ptr<int32_t>()[item] >= 0; }
  /// float32 [n, width] of the items (int64 or int32 [n]), zero where missing.
  torch::Tensor gather(const torch::Tensor& items) const;
  /// All items, float32 [n_items, width], zero where missing.
  torch::Tensor all() const;
  /// bool [n_items].
  torch::Tensor present() const;
};

}  // namespace tessera

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// Raw ids <-> indices 0..size-1. Ids are stored in one block of bytes with an open-addressing
/// table beside it, about 12 bytes an id above its text.
class Vocabulary {
 public:
  /// Index of `id`, which is added at the end when it is new.
  int32_t add(std::string_view id);
  /// Index of `id`, or -1.
  int32_t find(std::string_view id) const;
  std::string_view operator[](int64_t index) const {
    return std::string_view(bytes_).substr(starts_[index], starts_[index + 1] - starts_[index]);
  }
  int64_t size() const { return static_cast<int64_t>(starts_.size()) - 1; }
  std::vector<std::string> ids() const;
  /// Ids that a mistyped `id` may mean, at most 10,000: about as long, with the same first or last
  /// byte.
  std::vector<std::string> near(std::string_view id) const;

 private:
  void grow();

  std::string bytes_;
  std::vector<uint64_t> starts_ = {0};
  std::vector<int32_t> slots_;  // index or -1; a power of two long
};

}  // namespace tessera

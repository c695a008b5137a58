#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace tessera {

/// FNV-1a, 64 bits.
uint64_t fnv1a64(std::string_view text);

/// Philox 4x32 with 10 rounds (Salmon et al., SC 2011): one block of four words of a counter and a
/// key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// A keyed family of random numbers without state: every draw is a function of
/// (seed, stream name, step, row, draw), so no result depends on threads, order or addresses.
class Random {
 public:
  explicit Random(uint64_t seed, std::string_view stream = "");

  /// The family with the same seed and another stream name.
  Random stream(std::string_view name) const;
  uint64_t seed() const { return seed_; }

  /// 32 random bits.
  uint32_t bits(uint64_t step, uint64_t row, uint32_t draw) const;
  /// Four neighbouring words at once: draws 4 * block .. 4 * block + 3 of (step, row).
  std::array<uint32_t, 4> block(uint64_t step, uint64_t row, uint32_t block) const;
  /// What Philox makes a block of; the lowest word counts the blocks.
  static std::array<uint32_t, 4> counter(uint64_t step, uint64_t row, uint32_t block);
  const std::array<uint32_t, 2>& key() const { return key_; }
  /// Uniform in [0, 1), 32 bits.
  double uniform(uint64_t step, uint64_t row, uint32_t draw) const;
  /// Standard normal by Box-Muller from draws 2 * draw and 2 * draw + 1.
  double normal(uint64_t step, uint64_t row, uint32_t draw) const;
  /// Unbiased integer in [0, n), n >= 1; takes as many draws as it must and advances `draw` past
  /// them.
  uint32_t below(uint32_t n, uint64_t step, uint64_t row, uint32_t& draw) const;
  /// Fisher-Yates shuffle keyed by (step, row).
  template <typename T>
  void shuffle(std::vector<T>& values, uint64_t step, uint64_t row = 0) const {
    std::array<uint32_t, 4> words{};
    uint32_t draw = 0, j = 0;
    for (size_t i = values.size(); i > 1; --i) {
      do {
        if (draw % 4 == 0) words = block(step, row, draw / 4);
      } while (!scaled(words[draw++ % 4], static_cast<uint32_t>(i), j));
      std::swap(values[i - 1], values[j]);
    }
  }

 private:
  /// Lemire's multiply-shift: `word` as an integer in [0, n), or false where that would be unfair.
  static bool scaled(uint32_t word, uint32_t n, uint32_t& out) {
    const uint64_t product = uint64_t{word} * n;
    const auto low = static_cast<uint32_t>(product);
    out = static_cast<uint32_t>(product >> 32);
    return low >= n || low >= (0u - n) % n;  // the rest of a division only where it can matter
  }

  uint64_t seed_;
  std::array<uint32_t, 2> key_;
};

}  // namespace tessera

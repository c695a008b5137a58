#include "tessera/base/random.h"

#include <cmath>
#include <numbers>

namespace tessera {
namespace {

uint64_t mixed(uint64_t x) {  // finaliser of splitmix64
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t fnv1a64(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const unsigned char c : text) hash = (hash ^ c) * 0x100000001b3ULL;
  return hash;
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return c;
}

Random::Random(uint64_t seed, std::string_view stream) : seed_(seed) {
  const uint64_t key = mixed(seed) ^ fnv1a64(stream);
  key_ = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

Random Random::stream(std::string_view name) const { return Random(seed_, name); }

std::array<uint32_t, 4> Random::counter(uint64_t step, uint64_t row, uint32_t block) {
  // 28 bits of block, 40 of row, 60 of step fill the 128 bits.
  return {block | static_cast<uint32_t>(row >> 32 << 28), static_cast<uint32_t>(row),
          static_cast<uint32_t>(step),
          static_cast<uint32_t>(step >> 32) | static_cast<uint32_t>(row >> 36 << 28)};
}

std::array<uint32_t, 4> Random::block(uint64_t step, uint64_t row, uint32_t block) const {
  return philox4x32(counter(step, row, block), key_);
}

uint32_t Random::bits(uint64_t step, uint64_t row, uint32_t draw) const {
  return block(step, row, draw / 4)[draw % 4];
}

double Random::uniform(uint64_t step, uint64_t row, uint32_t draw) const {
  return bits(step, row, draw) * 0x1p-32;
}

double Random::normal(uint64_t step, uint64_t row, uint32_t draw) const {
  const auto words = block(step, row, draw / 2);
  const double u = (words[draw % 2 * 2] + 0.5) * 0x1p-32;
  const double v = words[draw % 2 * 2 + 1] * 0x1p-32;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

uint32_t Random::below(uint32_t n, uint64_t step, uint64_t row, uint32_t& draw) const {
  uint32_t out = 0;
  while (!scaled(bits(step, row, draw++), n, out)) {
  }
  return out;
}

}  // namespace tessera

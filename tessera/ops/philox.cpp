#include "tessera/ops/philox.h"

#include <torch/types.h>

namespace tessera {

std::array<torch::Tensor, 4> philox_composed(std::array<torch::Tensor, 4> c,
                                             std::array<uint32_t, 2> k) {
  constexpr int64_t kWord = 0xFFFFFFFF;
  // A product of two words fills 64 bits; as int64 it wraps, and the shift's sign is masked away.
  const auto high = [](const torch::Tensor& x) {
    return torch::bitwise_right_shift(x, 32).bitwise_and_(kWord);
  };
  for (int round = 0; round < 10; ++round) {
    const auto p0 = c[0] * int64_t{0xD2511F53}, p1 = c[2] * int64_t{0xCD9E8D57};
    c = {high(p1).bitwise_xor(c[1]).bitwise_xor_(int64_t{k[0]}), p1.bitwise_and(kWord),
         high(p0).bitwise_xor(c[3]).bitwise_xor_(int64_t{k[1]}), p0.bitwise_and(kWord)};
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return c;
}

}  // namespace tessera

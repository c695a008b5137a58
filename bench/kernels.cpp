// One of the hottest kernels on fixed input, a given number of times: bench_kernels NAME TIMES.
// bench/check counts its instructions; nothing here is timed.
#include "tessera/ops/kernels.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tessera/ops/block_product.h"
#include "tessera/ops/sequence_kernels.h"

namespace {

namespace kernels = tessera::kernels;

/// Values in (-1, 1) by a linear congruence: the same everywhere.
std::vector<float> values(size_t n) {
  std::vector<float> out(n);
  uint32_t state = 1;
  for (float& x : out) {
    state = state * 1664525U + 1013904223U;
    x = static_cast<float>(static_cast<int32_t>(state)) / 2147483648.0F;
  }
  return out;
}

/// Four pending steps and a real one on 64 rows of 4,096 columns.
void adam(int64_t times) {
  constexpr int64_t n = 64 * 4096;
  auto p = values(n), g = values(n);
  std::vector<float> m(n, 0.01F), v(n, 0.02F);
  const kernels::AdamConstants constants{0.9, 0.999, 1e-8, 0, false};
  const std::vector<kernels::AdamStep> steps(4, {1e-3, 0.5, 0});
  for (int64_t t = 0; t < times; ++t) {
    kernels::adam(p.data(), m.data(), v.data(), nullptr, n, constants, steps.data(), 4);
    kernels::adam(p.data(), m.data(), v.data(), g.data(), n, constants, steps.data(), 1);
  }
}

/// 2,000 rows of 17 non-zeros, 64 columns.
void spmm(int64_t times) {
  constexpr int64_t rows = 2000, per_row = 17, width = 64;
  std::vector<int64_t> offsets(rows + 1);
  std::vector<int32_t> columns(rows * per_row);
  for (int64_t r = 0; r <= rows; ++r) offsets[r] = r * per_row;
  for (size_t e = 0; e < columns.size(); ++e) columns[e] = static_cast<int32_t>(e * 7919 % rows);
  const std::vector<double> roots(rows, 0.25);
  const auto x = values(rows * width);
  std::vector<float> out(rows * width);
  const kernels::Spmm matrix{offsets.data(), columns.data(), roots.data(), roots.data(), width, 1};
  for (int64_t t = 0; t < times; ++t) {
    kernels::spmm(matrix, x.data(), nullptr, out.data(), 0, rows);
  }
}

/// Six users against 1,600 items of 64 columns, and the threshold test that follows.
void ranking(int64_t times) {
  constexpr int64_t kRows = 6, kColumns = kernels::kBlockColumns<float>;
  constexpr int64_t depth = 64, tiles = 100, columns = kColumns * tiles;
  const auto a = values(kRows * depth), b = values(depth * columns);
  std::vector<float> out(kRows * columns);
  std::vector<uint32_t> bits(columns / 32);
  int64_t above = 0;
  for (int64_t t = 0; t < times; ++t) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      kernels::block_product(kernels::BlockProduct<float>{
          a.data(), depth, 1, b.data() + tile * depth * kColumns, kColumns, depth,
          out.data() + tile * kColumns, columns, kRows, kColumns, false});
    }
    for (int64_t row = 0; row < kRows; ++row) {
      kernels::above(out.data() + row * columns, columns / 32, 1e9F, bits.data());
      above += std::count_if(bits.begin(), bits.end(), [](uint32_t word) { return word != 0; });
    }
  }
  if (above != 0) std::abort();
}

/// The softmax of 100 rows of 2,000 scores.
void exp_row(int64_t times) {
  constexpr int64_t n = 2000;
  const auto start = values(n);
  for (int64_t t = 0; t < 100 * times; ++t) {
    std::vector<float> row = start;
    if (!(kernels::exp_row(row.data(), n).sum > 0)) std::abort();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void(int64_t)>> all = {
      {"adam", adam}, {"spmm", spmm}, {"ranking", ranking}, {"exp_row", exp_row}};
  const auto found = argc == 3 ? all.find(argv[1]) : all.end();
  if (found == all.end()) {
    std::fputs("usage: bench_kernels adam|spmm|ranking|exp_row TIMES\n", stderr);
    return 2;
  }
  found->second(std::atoll(argv[2]));
  return 0;
}

// Single ops against the machine's own limits, which this program measures: bytes moved over the
// bandwidth of a sum of two arrays that, with the sum, are as large as what the op goes over again
// and again (so that both come from the same cache or from main memory), or operations over the
// rate of a square GEMM. The counter `limit` is that bandwidth, `share` the part of the limit that
// is reached; rates are those of the threads in use.
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <vector>

#include "tessera/base/random.h"
#include "tessera/ops/adam.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/sequence_losses.h"
#include "tessera/ops/topk.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(const std::function<void()>& body) {
  double best = 1e9;
  for (int round = 0; round < 7; ++round) {
    const auto start = Clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

/// Bytes a second of c = a + b, the three together `size` bytes.
double bandwidth(double size) {
  static std::map<double, double> measured;
  double& rate = measured[size];
  if (rate == 0) {
    const auto n = static_cast<int64_t>(size / 12);
    const int64_t times = std::max<int64_t>(1, (1 << 25) / n);
    std::vector<float> a(n, 1), b(n, 2), c(n, 0);
    const double pass = seconds([&] {
      for (int64_t k = 0; k < times; ++k) {
        parallel_for(0, n, 8192, [&](int64_t begin, int64_t end) {
          kernels::combine(1, a.data() + begin, 1, b.data() + begin, end - begin, c.data() + begin);
        });
        benchmark::ClobberMemory();
      }
    });
    rate = 12.0 * static_cast<double>(n * times) / pass;
  }
  return rate;
}

double flop_per_s() {
  static const double measured = [] {
    const auto x = torch::ones({1536, 1536}), y = torch::ones({1536, 1536});
    const double product = seconds([&] { benchmark::DoNotOptimize(x.matmul(y)); });
    return 2.0 * 1536 * 1536 * 1536 / product;
  }();
  return measured;
}

/// `each`: bytes moved by an iteration; `size`: bytes that the iterations go over.
void bytes(benchmark::State& state, double each, double size) {
  const double total = each * static_cast<double>(state.iterations()), limit = bandwidth(size);
  state.counters["GB/s"] = benchmark::Counter(total / 1e9, benchmark::Counter::kIsRate);
  state.counters["limit"] = limit / 1e9;
  state.counters["share"] = benchmark::Counter(total / limit, benchmark::Counter::kIsRate);
}

void flop(benchmark::State& state, double each) {
  const double total = each * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(total / 1e9, benchmark::Counter::kIsRate);
  state.counters["share"] = benchmark::Counter(total / flop_per_s(), benchmark::Counter::kIsRate);
}

// The size of Baby: 19,445 users, 7,050 items, 118,551 train pairs.
constexpr int64_t kUsers = 19445, kItems = 7050, kPairs = 118551, kDim = 64;

BipartiteGraph graph() {
  const Random random(1, "bench");
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < kUsers; ++u) {
    const int64_t n = (u + 1) * kPairs / kUsers - u * kPairs / kUsers;
    std::vector<int32_t> row;
    for (int64_t k = 0; k < n; ++k) {
      const double r = random.uniform(0, static_cast<uint64_t>(u), static_cast<uint32_t>(k));
      row.push_back(static_cast<int32_t>(kItems * std::pow(r, 2.5)));
    }
    std::sort(row.begin(), row.end());
    row.erase(std::unique(row.begin(), row.end()), row.end());
    items.insert(items.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return {torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32), kItems};
}

torch::Tensor table(int64_t rows, int64_t cols) {
  return normal(rows, cols, 0, 0.1, Random(2, "table"));
}

torch::Tensor some_rows(int64_t n, int64_t below) {
  const Random random(3, "rows");
  auto out = torch::empty({n}, torch::kInt64);
  for (int64_t k = 0; k < n; ++k) {
    uint32_t draw = 0;
    out[k] = static_cast<int64_t>(
        random.below(static_cast<uint32_t>(below), 0, static_cast<uint64_t>(k), draw));
  }
  return out;
}

void propagation(benchmark::State& state) {
  const auto g = graph();
  const auto users = table(kUsers, kDim), items = table(kItems, kDim);
  for (auto _ : state) benchmark::DoNotOptimize(propagate(g, users, items));
  // A row is read for each end of each edge, and each output row is written.
  constexpr double kTables = 4.0 * (kUsers + kItems) * kDim;
  bytes(state, static_cast<double>(2 * g.n_edges()) * kDim * 4 + kTables, 2 * kTables);
}
BENCHMARK(propagation)->UseRealTime()->Unit(benchmark::kMillisecond);

AdamOptions adam_options() {
  AdamOptions options;
  options.learning_rate = [](int64_t) { return 1e-3; };
  return options;
}

void adam_dense(benchmark::State& state) {
  auto value = table(kUsers + kItems, kDim);
  const auto gradient = table(kUsers + kItems, kDim);
  DenseAdam adam;
  for (auto _ : state) adam.step("value", value, gradient, adam_options());
  const auto table_bytes = 4.0 * static_cast<double>(value.numel());
  bytes(state, 7 * table_bytes, 4 * table_bytes);  // reads p m v g, writes p m v
}
BENCHMARK(adam_dense)->UseRealTime()->Unit(benchmark::kMillisecond);

void adam_rows(benchmark::State& state) {
  RowTable rows(table(kItems, 4096));
  rows.configure(adam_options());
  const auto touched = std::get<0>(at::_unique(some_rows(1600, kItems)));
  for (auto _ : state) {
    const auto leaf = rows.gather(touched);
    leaf.mutable_grad() = torch::ones_like(leaf);
    rows.step();
  }
  const double row_bytes = 4.0 * 4096 * static_cast<double>(touched.numel());
  bytes(state, 9 * row_bytes, 5 * row_bytes);  // p m v g, read and written, and the gathered copy
}
BENCHMARK(adam_rows)->UseRealTime()->Unit(benchmark::kMillisecond);

void gather_and_back(benchmark::State& state) {
  const auto rows = some_rows(4096, kItems);
  const auto x = table(kItems, kDim).requires_grad_();
  const auto g = table(4096, kDim);
  for (auto _ : state) {
    gather_rows(x, rows).backward(g);
    x.mutable_grad().reset();
  }
  // Reads and writes rows twice, clears the table.
  bytes(state, (4.0 * 4096 + kItems) * kDim * 4, (2.0 * kItems + 2 * 4096) * kDim * 4);
}
BENCHMARK(gather_and_back)->UseRealTime()->Unit(benchmark::kMillisecond);

void bpr(benchmark::State& state) {
  const auto users = table(kUsers, kDim).requires_grad_(),
             items = table(kItems, kDim).requires_grad_();
  const Triples at = {some_rows(2048, kUsers), some_rows(2048, kItems),
                      some_rows(2048, kItems).view({2048, 1})};
  for (auto _ : state) {
    benchmark::DoNotOptimize(torch::autograd::grad({bpr_loss(users, items, at)}, {users, items}));
  }
  // Reads rows twice, writes both gradients.
  bytes(state, (8.0 * 2048 + kUsers + kItems) * kDim * 4, 2.0 * (kUsers + kItems) * kDim * 4);
}
BENCHMARK(bpr)->UseRealTime()->Unit(benchmark::kMillisecond);

void projection(benchmark::State& state) {
  const auto x = table(1457, 4096), w = table(kDim, 4096);
  for (auto _ : state) benchmark::DoNotOptimize(x.matmul(w.t()));
  flop(state, 2.0 * 1457 * 4096 * kDim);
}
BENCHMARK(projection)->UseRealTime()->Unit(benchmark::kMillisecond);

void ranking(benchmark::State& state) {
  const auto users = table(4096, kDim), items = table(kItems, kDim);
  for (auto _ : state) benchmark::DoNotOptimize(top_k_product(users, items, {}, 50));
  flop(state, 2.0 * 4096 * kItems * kDim);
}
BENCHMARK(ranking)->UseRealTime()->Unit(benchmark::kMillisecond);

/// What ranking is compared with: its product alone, by torch, a block of users at a time.
void product_alone(benchmark::State& state) {
  const auto users = table(4096, kDim), items = table(kItems, kDim);
  auto scores = torch::empty({256, kItems});
  for (auto _ : state) {
    for (const auto& block : users.split(256)) at::mm_out(scores, block, items.t());
    benchmark::ClobberMemory();
  }
  flop(state, 2.0 * 4096 * kItems * kDim);
}
BENCHMARK(product_alone)->UseRealTime()->Unit(benchmark::kMillisecond);

/// The softmax over the items of Toys, value and gradients. Arguments: positions and items of a
/// tile, positions (704 in a batch of 128 users of Toys).
void softmax(benchmark::State& state) {
  constexpr int64_t n_items = 11924;
  const int64_t n = state.range(2);
  const auto h = table(n, kDim).requires_grad_(), items = table(n_items, kDim).requires_grad_();
  const auto targets = some_rows(n, n_items);
  SoftmaxBlocks blocks;
  blocks.positions = state.range(0);
  blocks.items = state.range(1);
  for (auto _ : state) {
    const auto loss = softmax_loss(h, items, targets, {}, blocks);
    benchmark::DoNotOptimize(torch::autograd::grad({loss}, {h, items}));
  }
  flop(state, 6.0 * static_cast<double>(n * n_items * kDim));
}
BENCHMARK(softmax)
    ->ArgsProduct({{60, 120}, {240, 480}, {704, 2048}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  std::printf("limits, %d threads: %.1f GB/s from main memory, %.0f GFLOP/s\n",
              at::get_num_threads(), tessera::bandwidth(12.0 * (1 << 25)) / 1e9,
              tessera::flop_per_s() / 1e9);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}

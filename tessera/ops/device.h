#pragma once

#include <torch/types.h>

#include <map>
#include <mutex>
#include <string>

namespace tessera {

/// While one with `on` lives, the ops of its thread go by plain tensor operations on the CPU too
/// (`--device reference`). Threads of parallel_for do not see it: ops are called outside.
class ReferenceOps {
 public:
  explicit ReferenceOps(bool on = true);
  ~ReferenceOps();
  ReferenceOps(const ReferenceOps&) = delete;
  ReferenceOps& operator=(const ReferenceOps&) = delete;

 private:
  const bool before_;
};

/// Whether an op on x goes by its composed form: x lies elsewhere than in main memory, or the
/// thread holds a ReferenceOps. The kernel otherwise.
bool composed(const torch::Tensor& x);

/// The row of each of n packed slots, by offsets int64 [rows + 1], without reading them. int64 [n]
torch::Tensor rows_of_slots(const torch::Tensor& offsets, int64_t n);

/// What is made once for a device and kept, by whichever thread asks first.
template <typename T>
class OncePerDevice {
 public:
  template <typename Make>
  T get(torch::Device device, const Make& make) {
    const std::lock_guard lock(mutex_);
    const auto [at, is_new] = made_.try_emplace(device.str());
    if (is_new) at->second = make();
    return at->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, T> made_;
};

}  // namespace tessera

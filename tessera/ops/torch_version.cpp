#include "tessera/ops/torch_version.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/cuda.h>
#include <torch/version.h>

namespace tessera {

const char* torch_version() { return TORCH_VERSION; }

Libtorch libtorch_here() {
  return {at::get_cpu_capability(),
          at::hasMKL()      ? "MKL"
          : at::hasLAPACK() ? "LAPACK"
                            : "",
          torch::cuda::is_available() ? static_cast<int64_t>(torch::cuda::device_count()) : 0,
          at::get_num_threads()};
}

}  // namespace tessera

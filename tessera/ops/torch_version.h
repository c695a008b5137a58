#pragma once

#include <cstdint>
#include <string>

namespace tessera {

/// The libtorch this library was built with, "2.13.0".
const char* torch_version();

/// What that libtorch can do on this machine.
struct Libtorch {
  std::string instructions;  ///< "AVX2", "AVX512", ..; "DEFAULT" for neither
  std::string blas;          ///< "MKL" or "LAPACK"; empty: none
  int64_t n_gpus = 0;        ///< that it can use
  int64_t n_threads = 0;
};
Libtorch libtorch_here();

}  // namespace tessera

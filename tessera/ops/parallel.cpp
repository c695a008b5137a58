#include "tessera/ops/parallel.h"

#include <ATen/Parallel.h>

namespace tessera {

// The one file compiled with OpenMP: without it at::parallel_for is a plain loop.
void parallel_for(int64_t begin, int64_t end, int64_t grain,
                  const std::function<void(int64_t, int64_t)>& body) {
  if (begin < end) at::parallel_for(begin, end, grain, body);
}

}  // namespace tessera

#pragma once

#include <cstdint>
#include <functional>

namespace tessera {

/// Calls body(begin, end) for parts that cover [begin, end) on torch's threads; on the calling
/// thread alone when the range is at most `grain` long or the caller already is such a part. The
/// parts depend on the number of threads: no result may depend on them. An exception comes through.
void parallel_for(int64_t begin, int64_t end, int64_t grain,
                  const std::function<void(int64_t, int64_t)>& body);

}  // namespace tessera

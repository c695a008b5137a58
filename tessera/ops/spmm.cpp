#include "tessera/ops/spmm.h"

#include <algorithm>

#include "tessera/ops/parallel.h"

namespace tessera {

void for_rows(const int64_t* offsets, int64_t n_rows, int64_t width,
              const std::function<void(int64_t, int64_t)>& body) {
  // A row costs its non-zeros and one more: most rows may be empty.
  const auto work = [&](int64_t row) { return offsets[row] + row; };
  const auto row_at = [&](int64_t amount) {  // the first row that begins at or after `amount`
    int64_t low = 0, high = n_rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (work(middle) < amount) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const int64_t grain = std::max<int64_t>(1, 131072 / std::max<int64_t>(1, width));
  parallel_for(0, work(n_rows), grain,
               [&](int64_t begin, int64_t end) { body(row_at(begin), row_at(end)); });
}

}  // namespace tessera

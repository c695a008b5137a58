#include "tessera/ops/device.h"

#include <torch/types.h>

namespace tessera {
namespace {

thread_local bool reference = false;

}  // namespace

ReferenceOps::ReferenceOps(bool on) : before_(reference) { reference = reference || on; }
ReferenceOps::~ReferenceOps() { reference = before_; }

bool composed(const torch::Tensor& x) { return reference || !x.is_cpu(); }

torch::Tensor rows_of_slots(const torch::Tensor& offsets, int64_t n) {
  // A row begins where an offset says so; n itself takes what begins behind the last slot.
  if (offsets.size(0) <= 2) return torch::zeros({n}, offsets.options());
  const auto inner = offsets.slice(0, 1, offsets.size(0) - 1);
  return torch::zeros({n + 1}, offsets.options())
      .index_add(0, inner, torch::ones_like(inner))
      .narrow(0, 0, n)
      .cumsum(0);
}

}  // namespace tessera

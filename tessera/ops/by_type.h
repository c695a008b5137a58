#pragma once

#include <torch/types.h>

namespace tessera {

/// Calls body(float{}) or body(double{}), by the type of `value`; anything else is a c10::Error.
template <typename Body>
void by_type(const torch::Tensor& value, const Body& body) {
  TORCH_CHECK(value.scalar_type() == torch::kFloat32 || value.scalar_type() == torch::kFloat64,
              "expected float32 or float64, got ", value.scalar_type());
  if (value.scalar_type() == torch::kFloat32) {
    body(float{});
  } else {
    body(double{});
  }
}

}  // namespace tessera

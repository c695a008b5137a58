#pragma once

#include <torch/types.h>

namespace tessera {

/// x W^T + b with x [n, in], weight [out, in], bias [out]; float32.
/// bfloat16: the three products (forward, towards x, towards W) take operands rounded to bfloat16,
/// sum in float32 and round each result to bfloat16 once; the bias and its gradient stay in
/// float32. A processor with such products uses them, any other multiplies the rounded values in
/// float32.
torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                     bool bfloat16);

}  // namespace tessera

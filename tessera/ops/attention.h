#pragma once

#include <torch/types.h>

#include "tessera/ops/dropout.h"

namespace tessera {

// Sequences of different lengths stand packed, one after another: x [P, d], offsets int64 [rows +
// 1]. The offsets lie in main memory whatever the device of x, as sizes do; no row is empty.

/// softmax(q k' / sqrt(d / heads)) v within each row, keys j <= t only where `causal`; q, k, v
/// [P, d]. Dropout falls on the softmax, its row of position p and head h being p heads + h. Own
/// gradient; memory is that of the longest rows' T x T. [P, d]
torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const torch::Tensor& offsets, int64_t n_heads, bool causal,
                        const DropKey& drop = {});
torch::Tensor attention_composed(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, const torch::Tensor& offsets,
                                 int64_t n_heads, bool causal, const DropKey& drop = {});

}  // namespace tessera

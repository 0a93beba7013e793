// Shared parts of attention: how scores are made, and access to the rows of a tensor.
#pragma once
#include "gemm_tile.h"

#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <optional>

namespace steering {

// How a score is made from a product of query and key. window: how many positions a token sees (none: all before it).
struct ScoreOptions {
  float scaling;
  std::optional<int64_t> window;
  std::optional<double> softcap;

  int64_t first_visible(int64_t position) const { return window ? std::max<int64_t>(0, position - *window + 1) : 0; }

  __m512 score(__m512 products) const {
    const __m512 scores = _mm512_mul_ps(products, _mm512_set1_ps(scaling));
    if (!softcap) return scores;
    const at::vec::Vectorized<float> cap(static_cast<float>(*softcap));
    return (at::vec::Vectorized<float>(scores) / cap).tanh() * cap;
  }
};

inline __m512 exponential(__m512 values) { return at::vec::Vectorized<float>(values).exp_u20(); }

// A mask of the first `count` lanes.
inline __mmask16 first_lanes(int64_t count) {
  return count >= LANES ? 0xffff : static_cast<__mmask16>((1u << std::max<int64_t>(count, 0)) - 1);
}

// Access to the vectors of a tensor by row and head; the last dimension is contiguous.
struct HeadRows {
  const bf16* data;
  int64_t row_stride, head_stride;

  const bf16* operator()(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

inline HeadRows head_rows(const at::Tensor& tensor, int64_t row_dimension, int64_t head_dimension) {
  return {
      reinterpret_cast<const bf16*>(tensor.const_data_ptr()), tensor.stride(row_dimension), tensor.stride(head_dimension)};
}

inline at::Tensor contiguous_heads(const at::Tensor& states) { return states.stride(3) == 1 ? states : states.contiguous(); }

}  // namespace steering

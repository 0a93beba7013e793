// Shared parts of attention: how scores are made, and access to the rows of a tensor.
#pragma once
#include "gemm_tile.h"

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

  // Scales and caps products of query and key.
  __m512 capped(__m512 products) const {
    const __m512 scores = _mm512_mul_ps(products, _mm512_set1_ps(scaling));
    const at::vec::Vectorized<float> cap(static_cast<float>(*softcap));
    return (at::vec::Vectorized<float>(scores) / cap).tanh() * cap;
  }

  // exp(score) is 2^(factor * x), where x is a capped score or, without softcap, a product of query and key.
  float exponent_factor() const {
    constexpr float LOG2_E = 1.44269504f;
    return softcap ? LOG2_E : LOG2_E * scaling;
  }
};

// 2^x by a polynomial of degree 4 in the fraction of x, fitted on [-0.5, 0.5]: a relative error of 2.6e-6, far below that
// of rounding to bfloat16. Inputs far below -126 become 0.
inline __m512 power_of_two(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 fraction = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(0.0095700873f);
  sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(0.055917859f));
  sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(0.24024746f));
  sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(0.69312179f));
  sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(0.99999928f));
  return _mm512_scalef_ps(sum, whole);
}

// A mask of the first `count` lanes.
inline __mmask16 first_lanes(int64_t count) {
  return count >= LANES ? 0xffff : static_cast<__mmask16>((1u << std::max<int64_t>(count, 0)) - 1);
}

// Calls call(at, mask) for each group of 16 lanes with one in [begin, end); only the first and the last need a mask.
template <class Call>
inline void for_visible(int64_t begin, int64_t end, const Call& call) {
  const int64_t first = begin / LANES * LANES, last = (end - 1) / LANES * LANES;
  const auto from_begin = static_cast<__mmask16>(~first_lanes(begin - first));
  const __mmask16 to_end = first_lanes(end - last);
  if (first == last) return call(first, static_cast<__mmask16>(from_begin & to_end));
  call(first, from_begin);
  for (int64_t at = first + LANES; at < last; at += LANES) call(at, __mmask16{0xffff});
  call(last, to_end);
}

// Access to the vectors of a tensor (1, head, token, width) by token and head; its last dimension is contiguous.
struct HeadRows {
  const bf16* data;
  int64_t row_stride, head_stride;

  explicit HeadRows(const at::Tensor& states)
      : data(bf16_data(states)), row_stride(states.stride(2)), head_stride(states.stride(1)) {}

  const bf16* operator()(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

inline at::Tensor contiguous_heads(const at::Tensor& states) { return states.stride(3) == 1 ? states : states.contiguous(); }

}  // namespace steering

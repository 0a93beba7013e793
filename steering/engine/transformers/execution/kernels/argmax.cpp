// Argmax of bfloat16 logits with a check for non-finite values, for greedy decoding: one vectorized scan for the maximum and
// the exponent bits, then a search for the first index that holds the maximum.
#include "gemm_tile.h"
#include "operations.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

namespace {

using namespace steering;

constexpr int64_t EXPONENT = 0x7f80;  // of a bfloat16; all bits set: infinity or NaN

struct Best {
  int64_t token, finite;
};

float to_float(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

Best row_argmax(const bf16* logits, int64_t count) {
  const __m256i exponent = _mm256_set1_epi16(EXPONENT);
  __m512 maxima = _mm512_set1_ps(-INFINITY);
  __mmask16 nonfinite = 0;
  int64_t index = 0;
  for (; index + LANES <= count; index += LANES) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(logits + index));
    nonfinite |= _mm256_cmpeq_epi16_mask(_mm256_and_si256(bits, exponent), exponent);
    maxima = _mm512_max_ps(maxima, load_float(logits + index));
  }
  float best = _mm512_reduce_max_ps(maxima);
  for (int64_t tail = index; tail < count; ++tail) {
    nonfinite |= (logits[tail] & EXPONENT) == EXPONENT;
    best = std::fmax(best, to_float(logits[tail]));
  }
  if (nonfinite) return {0, 0};
  for (int64_t start = 0; start + LANES <= count; start += LANES)
    if (const auto equal = _mm512_cmp_ps_mask(load_float(logits + start), _mm512_set1_ps(best), _CMP_EQ_OQ))
      return {start + __builtin_ctz(equal), 1};
  while (to_float(logits[index]) != best) ++index;
  return {index, 1};
}

}  // namespace

at::Tensor steering::argmax(const at::Tensor& logits) {
  TORCH_CHECK(
      logits.dim() == 2 && logits.stride(1) == 1 && logits.scalar_type() == at::kBFloat16,
      "argmax: logits must be (row, vocab) in bfloat16 with contiguous rows");
  auto out = at::empty({logits.size(0), 2}, logits.options().dtype(at::kLong));
  const auto* rows = reinterpret_cast<const bf16*>(logits.const_data_ptr());
  auto* result = out.mutable_data_ptr<int64_t>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Best best = row_argmax(rows + row * logits.stride(0), logits.size(1));
      result[2 * row] = best.token;
      result[2 * row + 1] = best.finite;
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("argmax", &steering::argmax); }

// The likeliest token of each row of logits, read once as they come, in bfloat16.
#include "operations.h"
#include "tile.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

namespace {

using namespace steering;

constexpr int64_t EXPONENT = 0x7f80;  // of a bfloat16; all ones: infinite, or not a number

struct Best {
  int64_t token, finite;
};

Best best_of(const half* logits, int64_t count) {
  const __m256i exponent = _mm256_set1_epi16(EXPONENT);
  __m512 highest = _mm512_set1_ps(-INFINITY);
  __mmask16 unbounded = 0;
  int64_t at = 0;
  for (; at + LANES <= count; at += LANES) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(logits + at));
    unbounded |= _mm256_cmpeq_epi16_mask(_mm256_and_si256(bits, exponent), exponent);
    highest = _mm512_max_ps(highest, widened(logits + at));
  }
  float best = _mm512_reduce_max_ps(highest);
  const auto number = [&](int64_t index) {
    const uint32_t bits = static_cast<uint32_t>(logits[index]) << 16;
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
  };
  for (int64_t rest = at; rest < count; ++rest) {
    unbounded |= (logits[rest] & EXPONENT) == EXPONENT;
    best = std::fmax(best, number(rest));
  }
  if (unbounded) return {0, 0};
  for (int64_t start = 0; start + LANES <= count; start += LANES)
    if (const auto equal = _mm512_cmp_ps_mask(widened(logits + start), _mm512_set1_ps(best), _CMP_EQ_OQ))
      return {start + __builtin_ctz(equal), 1};
  while (number(at) != best) ++at;
  return {at, 1};
}

}  // namespace

at::Tensor steering::likeliest(const at::Tensor& logits) {
  TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1 && logits.scalar_type() == at::kBFloat16, "rows of bfloat16");
  auto out = at::empty({logits.size(0), 2}, logits.options().dtype(at::kLong));
  const auto* rows = reinterpret_cast<const half*>(logits.const_data_ptr());
  auto* found = out.mutable_data_ptr<int64_t>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Best best = best_of(rows + row * logits.stride(0), logits.size(1));
      found[2 * row] = best.token;
      found[2 * row + 1] = best.finite;
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("likeliest", &steering::likeliest); }

// Decode attention: one new token a row against all cached positions of the row's slot. Used for decode passes in bfloat16
// with head widths that are a multiple of 32.
//
// Algorithm: grouped-query attention. For each (row, key-value head) the scores of all visible positions are computed with
// bfloat16 dot products, sixteen positions at a time, then a two-pass softmax in float32, then the weighted sum of the
// values for up to four query heads at once, so that values are read once for them. Threads take (row, head) items from a
// shared counter. Keys and values lie as (position, width) within each (slot, kv_head).
//
// A row's result depends on no other row.
#include "aoti_shim.h"
#include "attention.h"
#include "operations.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <vector>

namespace {

using namespace steering;

constexpr int MAX_HEADS = 4;  // query heads that share one reading of the values: four registers each

// The horizontal sums of sixteen registers, in order, by a tree of shuffles and adds.
__m512 horizontal_sums(__m512 (&rows)[16]) {
  __m512 pairs[8], fours[4];
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_add_ps(
        _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d left = _mm512_castps_pd(pairs[2 * i]), right = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(left, right)), _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
  }
  const auto fold = [](__m512 left, __m512 right) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x88), _mm512_shuffle_f32x4(left, right, 0xdd));
  };
  return fold(fold(fours[0], fours[1]), fold(fours[2], fours[3]));
}

// Scores of one query with `count` keys (position, width); returns the largest. Prefetches as many values from `next`.
float compute_scores(
    const bf16* query, const bf16* keys, int64_t width, int64_t count, const ScoreOptions& options, const bf16* next,
    float* scores) {
  __m512 maxima = _mm512_set1_ps(-INFINITY);
  for (int64_t start = 0; start < count; start += LANES) {
    __m512 products[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) products[i] = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += BF16_LANES) {
      const __m512bh part = load_pairs(query + at);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const bf16* key = keys + std::min(start + i, count - 1) * width + at;
        products[i] = _mm512_dpbf16_ps(products[i], part, load_pairs(key));
        if (next) _mm_prefetch(reinterpret_cast<const char*>(next + (start + i) * width + at), _MM_HINT_T0);
      }
    }
    const __m512 block = options.score(horizontal_sums(products));
    _mm512_storeu_ps(scores + start, block);
    maxima = _mm512_mask_max_ps(maxima, first_lanes(count - start), maxima, block);
  }
  return _mm512_reduce_max_ps(maxima);
}

// Replaces scores by e^(score - maximum) and returns their sum.
float exponentiate(float* scores, int64_t count, float maximum) {
  __m512 total = _mm512_setzero_ps();
  for (int64_t start = 0; start < count; start += LANES) {
    const __m512 weights = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + start), _mm512_set1_ps(maximum)));
    _mm512_storeu_ps(scores + start, weights);
    total = _mm512_mask_add_ps(total, first_lanes(count - start), total, weights);
  }
  return _mm512_reduce_add_ps(total);
}

// Weighted sum of PARTS registers of the values (position, width) for HEADS heads, whose weights are `stride` apart.
// Prefetches as many values from `next`.
template <int HEADS, int PARTS>
void weighted_sum(
    const bf16* values, int64_t width, int64_t count, const float* weights, int64_t stride, const float* row_sums,
    const bf16* next, bf16* out) {
  __m512 acc[HEADS][PARTS];
#pragma GCC unroll 4
  for (int head = 0; head < HEADS; ++head)
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) acc[head][part] = _mm512_setzero_ps();
  for (int64_t position = 0; position < count; ++position) {
    __m512 value[PARTS];
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) {
      value[part] = load_float(values + position * width + part * LANES);
      if (next && part % 2 == 0)
        _mm_prefetch(reinterpret_cast<const char*>(next + position * width + part * LANES), _MM_HINT_T1);
    }
#pragma GCC unroll 4
    for (int head = 0; head < HEADS; ++head) {
      const __m512 weight = _mm512_set1_ps(weights[head * stride + position]);
#pragma GCC unroll 4
      for (int part = 0; part < PARTS; ++part) acc[head][part] = _mm512_fmadd_ps(weight, value[part], acc[head][part]);
    }
  }
  for (int head = 0; head < HEADS; ++head)
    for (int part = 0; part < PARTS; ++part)
      store_bf16(out + head * width + part * LANES, _mm512_div_ps(acc[head][part], _mm512_set1_ps(row_sums[head])));
}

// The same over the whole width, for at most HEADS of the heads.
template <int HEADS>
void weighted_sums(
    int64_t heads, const bf16* values, int64_t width, int64_t count, const float* weights, int64_t stride,
    const float* row_sums, const bf16* next, bf16* out) {
  if constexpr (HEADS > 1)
    if (heads < HEADS) return weighted_sums<HEADS - 1>(heads, values, width, count, weights, stride, row_sums, next, out);
  int64_t at = 0;
  for (; at + 2 * BF16_LANES <= width; at += 2 * BF16_LANES)
    weighted_sum<HEADS, 4>(values + at, width, count, weights, stride, row_sums, next ? next + at : nullptr, out + at);
  if (at < width)
    weighted_sum<HEADS, 2>(values + at, width, count, weights, stride, row_sums, next ? next + at : nullptr, out + at);
}

// The query heads that share one key-value head of one row. out (group, width). Slots are too short for the hardware
// prefetcher, so values are prefetched while keys are read, and the next item's keys while values are read.
void attend_group(
    const HeadRows& queries, int64_t row, int64_t head, int64_t group, const bf16* keys, const bf16* values,
    const bf16* next_keys, bf16* out, int64_t width, int64_t position, const ScoreOptions& options) {
  thread_local std::vector<float> scratch;
  const int64_t first = options.first_visible(position), count = position + 1 - first;
  const int64_t stride = (count + LANES - 1) / LANES * LANES;
  scratch.resize(group * (stride + 1));
  float* row_sums = scratch.data() + group * stride;
  for (int64_t i = 0; i < group; ++i) {
    float* scores = scratch.data() + i * stride;
    const bf16* next = i == 0 ? values + first * width : nullptr;
    const float row_max = compute_scores(queries(row, head + i), keys + first * width, width, count, options, next, scores);
    row_sums[i] = exponentiate(scores, count, row_max);
  }
  for (int64_t i = 0; i < group; i += MAX_HEADS)
    weighted_sums<MAX_HEADS>(
        group - i, values + first * width, width, count, scratch.data() + i * stride, stride, row_sums + i,
        i == 0 ? next_keys : nullptr, out + i * width);
}

}  // namespace

at::Tensor steering::decode_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& positions, double scaling, std::optional<int64_t> window, std::optional<double> softcap) {
  check_attention(query, key, value, keys, values);
  const int64_t rows = query.size(0), heads = query.size(1), width = query.size(3);
  const int64_t kv_heads = keys.size(1), capacity = keys.size(2), group = heads / kv_heads;
  TORCH_CHECK(query.size(2) == 1 && rows <= keys.size(0), "decode_attention: expected one token per row and a slot per row");
  const auto new_query = contiguous_heads(query), new_key = contiguous_heads(key), new_value = contiguous_heads(value);
  const auto row_positions = positions.contiguous();
  auto out = at::empty({rows, 1, heads, width}, query.options());
  const ScoreOptions options{static_cast<float>(scaling), window, softcap};
  const HeadRows query_rows = head_rows(new_query, 0, 1), key_rows = head_rows(new_key, 0, 1),
                 value_rows = head_rows(new_value, 0, 1);
  const int64_t* position_of = row_positions.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row)
    TORCH_CHECK(
        position_of[row] >= 0 && position_of[row] < capacity, "decode_attention: position ", position_of[row], " of ", capacity);
  auto* all_keys = reinterpret_cast<bf16*>(keys.mutable_data_ptr());
  auto* all_values = reinterpret_cast<bf16*>(values.mutable_data_ptr());
  auto* result = reinterpret_cast<bf16*>(out.mutable_data_ptr());
  const int64_t items = rows * kv_heads, threads = std::min<int64_t>(at::get_num_threads(), items);
  std::atomic<int64_t> counter{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t item = counter++, next = counter++; item < items; item = next, next = counter++) {
      const int64_t row = item / kv_heads, head = item % kv_heads, position = position_of[row];
      const int64_t slot = item * capacity * width;
      const bf16* next_keys = nullptr;
      if (next < items) next_keys = all_keys + (next * capacity + options.first_visible(position_of[next / kv_heads])) * width;
      std::copy_n(key_rows(row, head), width, all_keys + slot + position * width);
      std::copy_n(value_rows(row, head), width, all_values + slot + position * width);
      attend_group(
          query_rows, row, head * group, group, all_keys + slot, all_values + slot, next_keys, result + item * group * width,
          width, position, options);
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("decode_attention", &steering::decode_attention); }

extern "C" AOTITorchError aoti_torch_cpu_decode_attention(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle keys, AtenTensorHandle values,
    AtenTensorHandle positions, double scaling, const int64_t* window, const double* softcap, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = steering::handle(steering::decode_attention(
        steering::tensor(query), steering::tensor(key), steering::tensor(value), steering::tensor(keys),
        steering::tensor(values), steering::tensor(positions), scaling, steering::optional(window),
        steering::optional(softcap)));
  });
}

// Register-blocked bfloat16 GEMM: the inner loop of the linear layers and of prefill attention.
//
// Data layout: the left operand has row-major rows of bfloat16. The right operand is packed in panels of VECTORS * 16
// columns, [pair][column][2]: two consecutive inputs of one column lie together, which is the operand layout of
// VDPBF16PS (AVX512_BF16). Sums are float32 and stay in registers: up to MAX_ROWS rows times VECTORS registers.
//
// Invariant: a column's sum runs over the inputs in one order for any number of rows, so a row's result has the same bits
// alone as in a batch.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace steering {

using bf16 = uint16_t;  // the bit pattern of a bfloat16

constexpr int64_t LANES = 16;            // float32 values in a register
constexpr int64_t BF16_LANES = 2 * LANES;  // bfloat16 values in a register
constexpr int MAX_ROWS = 8;              // rows of a tile: with three vectors a row they fill the 32 registers

inline __m512bh load_pairs(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }

inline __m512bh broadcast_pair(const bf16* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

inline __m512 to_float(__m256i values) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16)); }

inline __m512 load_float(const bf16* from) { return to_float(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

inline __m256i to_bf16(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

inline void store_bf16(bf16* to, __m512 values) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bf16(values)); }

// Software prefetch into L2: `lines` cache lines for each step of a tile.
struct Prefetch {
  const char* address = nullptr;
  int64_t lines = 0;

  void step() {
    if (lines > 0) _mm_prefetch(address, _MM_HINT_T1);
    if (lines > 1) _mm_prefetch(address + 64, _MM_HINT_T1);
    if (lines > 2) _mm_prefetch(address + 128, _MM_HINT_T1);
    address += 64 * lines;
  }
};

// Multiplies ROWS rows of `left` (`stride` values apart) by one panel. load(row, vector) returns the initial sums,
// store(row, vector, sums) takes the results.
template <int ROWS, int VECTORS, class Load, class Store>
inline void gemm_tile(
    const bf16* left, int64_t stride, const bf16* panel, int64_t pairs, Prefetch& prefetch, const Load& load,
    const Store& store) {
  __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) sums[row][vector] = load(row, vector);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512bh right[VECTORS];
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector)
      right[vector] = load_pairs(panel + (pair * VECTORS + vector) * BF16_LANES);
    prefetch.step();
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      const __m512bh inputs = broadcast_pair(left + row * stride + 2 * pair);
#pragma GCC unroll 4
      for (int vector = 0; vector < VECTORS; ++vector)
        sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], right[vector], inputs);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) store(row, vector, sums[row][vector]);
}

// Dispatches to a tile of `rows` rows, at most MAX_ROWS.
template <int VECTORS, class Load, class Store>
inline void gemm_rows(
    int64_t rows, const bf16* left, int64_t stride, const bf16* panel, int64_t pairs, Prefetch& prefetch, const Load& load,
    const Store& store) {
  switch (rows) {
    case 1: return gemm_tile<1, VECTORS>(left, stride, panel, pairs, prefetch, load, store);
    case 2: return gemm_tile<2, VECTORS>(left, stride, panel, pairs, prefetch, load, store);
    case 3: return gemm_tile<3, VECTORS>(left, stride, panel, pairs, prefetch, load, store);
    case 4: return gemm_tile<4, VECTORS>(left, stride, panel, pairs, prefetch, load, store);
    case 5: return gemm_tile<5, VECTORS>(left, stride, panel, pairs, prefetch, load, store);
    case 6: return gemm_tile<6, VECTORS>(left, stride, panel, pairs, prefetch, load, store);
    case 7: return gemm_tile<7, VECTORS>(left, stride, panel, pairs, prefetch, load, store);
    default: return gemm_tile<8, VECTORS>(left, stride, panel, pairs, prefetch, load, store);
  }
}

// Splits rows into tiles of nearly equal size: call(first row, rows of the tile).
template <class Call>
inline void for_each_tile(int64_t rows, const Call& call) {
  const int64_t tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = rows * tile / tiles;
    call(first, rows * (tile + 1) / tiles - first);
  }
}

}  // namespace steering

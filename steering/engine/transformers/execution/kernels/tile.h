// The inner loop of everything here: a few rows times a panel of weights, in registers.
//
// Numbers are bfloat16, sums float32. A panel holds VECTORS * 16 columns, two consecutive inputs of a column side by side
// ([pair][column][2]), which is what the processor's dot product of halves takes. A column's sum runs over the inputs in
// one order, whatever the number of rows: a row gets the same bits alone as among others.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace steering {

using half = uint16_t;  // the bits of a bfloat16

constexpr int64_t LANES = 16;  // float32 a register

inline __m512bh load_pairs(const half* from) { return (__m512bh)_mm512_loadu_si512(from); }

inline __m512bh same_pair(const half* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

inline __m512 widened(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }

inline __m512 widened(const half* from) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

inline __m256i narrowed(__m512 numbers) { return (__m256i)_mm512_cvtneps_pbh(numbers); }

// What is asked for from memory while a tile is computed: `lines` cache lines a step.
struct Ahead {
  const char* at = nullptr;
  int64_t lines = 0;

  void step() {
    if (lines > 0) _mm_prefetch(at, _MM_HINT_T1);
    if (lines > 1) _mm_prefetch(at + 64, _MM_HINT_T1);
    if (lines > 2) _mm_prefetch(at + 128, _MM_HINT_T1);
    at += 64 * lines;
  }
};

// ROWS rows of `left` (row length `stride`) times a panel; begin(row, vector) gives the first sums, end(row, vector, sums)
// takes the last.
template <int ROWS, int VECTORS, class Begin, class End>
inline void tile(
    const half* left, int64_t stride, const half* panel, int64_t pairs, Ahead& ahead, const Begin& begin, const End& end) {
  __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) sums[row][vector] = begin(row, vector);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512bh right[VECTORS];
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector)
      right[vector] = load_pairs(panel + (pair * VECTORS + vector) * 2 * LANES);
    ahead.step();
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      const __m512bh numbers = same_pair(left + row * stride + 2 * pair);
#pragma GCC unroll 4
      for (int vector = 0; vector < VECTORS; ++vector)
        sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], right[vector], numbers);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) end(row, vector, sums[row][vector]);
}

constexpr int MOST_ROWS = 8;  // of a tile: with three vectors a row they fill the registers

// A tile of a number of rows that is known only now, at most MOST_ROWS.
template <int VECTORS, class Begin, class End>
inline void tile_of(
    int64_t rows, const half* left, int64_t stride, const half* panel, int64_t pairs, Ahead& ahead, const Begin& begin,
    const End& end) {
  switch (rows) {
    case 1: return tile<1, VECTORS>(left, stride, panel, pairs, ahead, begin, end);
    case 2: return tile<2, VECTORS>(left, stride, panel, pairs, ahead, begin, end);
    case 3: return tile<3, VECTORS>(left, stride, panel, pairs, ahead, begin, end);
    case 4: return tile<4, VECTORS>(left, stride, panel, pairs, ahead, begin, end);
    case 5: return tile<5, VECTORS>(left, stride, panel, pairs, ahead, begin, end);
    case 6: return tile<6, VECTORS>(left, stride, panel, pairs, ahead, begin, end);
    case 7: return tile<7, VECTORS>(left, stride, panel, pairs, ahead, begin, end);
    default: return tile<8, VECTORS>(left, stride, panel, pairs, ahead, begin, end);
  }
}

// Rows in tiles as even as can be: visit(first row, rows of the tile).
template <class Visit>
inline void in_tiles(int64_t rows, const Visit& visit) {
  const int64_t tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = rows * tile / tiles;
    visit(first, rows * (tile + 1) / tiles - first);
  }
}

}  // namespace steering

// The products of attention by register-blocked GEMM (VDPBF16PS), for CPUs with AVX512_BF16 and without AMX: see query_tile.h.
#pragma once
#ifndef __AMX_BF16__
#include "query_tile.h"

#include <algorithm>

namespace steering {

constexpr int KEY_VECTORS = 3;  // blocks whose scores are computed together

// Multiplies ROWS rows of `left` (`stride` values apart) by panels of VECTORS * 16 columns, which are cut along the inputs
// into `blocks` pieces of `pairs` pairs: panel(block, vector) is the first pair of a piece, the next is `pair_stride` later.
// prefetch(block, pair) is called once for each pair.
template <int ROWS, int VECTORS, class Panel, class Prefetch, class Load, class Store>
inline void gemm_panels(
    const bf16* left, int64_t stride, int64_t blocks, int64_t pairs, int64_t pair_stride, const Panel& panel,
    const Prefetch& prefetch, const Load& load, const Store& store) {
  __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) sums[row][vector] = load(row, vector);
  for (int64_t block = 0; block < blocks; ++block) {
    const bf16* piece[VECTORS];
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) piece[vector] = panel(block, vector);
    const bf16* inputs = left + block * pairs * 2;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      __m512bh right[VECTORS];
#pragma GCC unroll 4
      for (int vector = 0; vector < VECTORS; ++vector) right[vector] = load_pairs(piece[vector] + pair * pair_stride);
      prefetch(block, pair);
#pragma GCC unroll 16
      for (int row = 0; row < ROWS; ++row) {
        const __m512bh input = broadcast_pair(inputs + row * stride + 2 * pair);
#pragma GCC unroll 4
        for (int vector = 0; vector < VECTORS; ++vector)
          sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], right[vector], input);
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) store(row, vector, sums[row][vector]);
}

// Splits `rows` into tiles of at most MAX and of nearly equal size: call.template operator()<rows of the tile>(first row).
template <int MAX, class Call>
inline void dispatch_tiles(int64_t rows, const Call& call) {
  const int64_t tiles = (rows + MAX - 1) / MAX;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = rows * tile / tiles;
    switch (rows * (tile + 1) / tiles - first) {
      case 1: call.template operator()<1>(first); break;
      case 2: call.template operator()<2>(first); break;
      case 3: call.template operator()<3>(first); break;
      case 4: call.template operator()<4>(first); break;
      case 5: call.template operator()<5>(first); break;
      case 6: call.template operator()<6>(first); break;
      case 7: if constexpr (MAX > 6) call.template operator()<7>(first); break;
      default: if constexpr (MAX > 6) call.template operator()<8>(first);
    }
  }
}

// scores = queries * keys, for blocks [first, first + count). A tile of few rows waits for memory, and blocks are too
// short for the hardware prefetcher: the next keys and the values of the same positions are prefetched.
inline void compute_scores(QueryTile& tile, const BlockTable& keys, const BlockTable& values, int64_t first, int64_t count) {
  const bool small = tile.rows() <= MAX_ROWS;
  for (int64_t start = 0; start < count; start += KEY_VECTORS) {
    const bf16 *next_keys[KEY_VECTORS], *next_values[KEY_VECTORS];
    for (int vector = 0; vector < KEY_VECTORS; ++vector) {
      next_keys[vector] = keys[first + std::min(start + KEY_VECTORS + vector, count - 1)];
      next_values[vector] = values[first + std::min(start + vector, count - 1)];
    }
    dispatch_tiles<MAX_ROWS>(tile.rows(), [&]<int ROWS>(int64_t row) {
      gemm_panels<ROWS, KEY_VECTORS>(
          tile.queries.data() + row * tile.width, tile.width, 1, tile.width / 2, BF16_LANES,
          [&](int64_t, int vector) { return keys[first + std::min(start + vector, count - 1)]; },
          [&](int64_t, int64_t pair) {
            if (!small) return;
            for (int vector = 0; vector < KEY_VECTORS; ++vector) {
              _mm_prefetch(reinterpret_cast<const char*>(next_keys[vector] + pair * BF16_LANES), _MM_HINT_T0);
              _mm_prefetch(reinterpret_cast<const char*>(next_values[vector] + pair * BF16_LANES), _MM_HINT_T0);
            }
          },
          [](int, int) { return _mm512_setzero_ps(); },
          [&](int offset, int vector, __m512 sums) {
            _mm512_storeu_ps(tile.scores.data() + (row + offset) * POSITIONS + (start + vector) * BLOCK, sums);
          });
    });
  }
}

// acc += weights * values, for blocks [first, first + count), VECTORS * 16 columns at a time.
template <int VECTORS, int MAX>
inline void accumulate_columns(QueryTile& tile, const BlockTable& values, int64_t first, int64_t count) {
  for (int64_t column = 0; column < tile.width; column += VECTORS * LANES)
    dispatch_tiles<MAX>(tile.rows(), [&]<int ROWS>(int64_t row) {
      float* sums = tile.acc.data() + row * tile.width + column;
      gemm_panels<ROWS, VECTORS>(
          tile.weights.data() + row * POSITIONS, POSITIONS, count, BLOCK / 2, 2 * tile.width,
          [&](int64_t block, int vector) { return values[first + block] + 2 * column + vector * BF16_LANES; },
          [](int64_t, int64_t) {},
          [&](int offset, int vector) { return _mm512_loadu_ps(sums + offset * tile.width + vector * LANES); },
          [&](int offset, int vector, __m512 result) {
            _mm512_storeu_ps(sums + offset * tile.width + vector * LANES, result);
          });
    });
}

// acc += weights * values, for blocks [first, first + count).
inline void accumulate_values(QueryTile& tile, const BlockTable& values, int64_t first, int64_t count) {
  if (tile.width % (4 * LANES) == 0)
    accumulate_columns<4, 6>(tile, values, first, count);
  else
    accumulate_columns<2, MAX_ROWS>(tile, values, first, count);
}

}  // namespace steering
#endif

// The products of attention by register-blocked GEMM, see query_tile.h.
#pragma once
#include "query_tile.h"

#include <algorithm>

namespace steering {

constexpr int KEY_VECTORS = 3;  // blocks whose scores are computed together

struct VectorProducts {
  // scores = queries * keys, for blocks [first, first + count). A tile of few rows waits for memory, and blocks are too
  // short for the hardware prefetcher: the next keys and the values of the same positions are prefetched.
  static void compute_scores(QueryRows& rows, const BlockTable& keys, const BlockTable& values, int64_t first, int64_t count) {
    const bool small = rows.whole && rows.count <= MAX_ROWS;
    for (int64_t start = 0; start < count; start += KEY_VECTORS) {
      const bf16 *next_keys[KEY_VECTORS], *next_values[KEY_VECTORS];
      for (int vector = 0; vector < KEY_VECTORS; ++vector) {
        next_keys[vector] = keys[first + std::min(start + KEY_VECTORS + vector, count - 1)];
        next_values[vector] = values[first + std::min(start + vector, count - 1)];
      }
      dispatch_tiles<MAX_ROWS>(rows.count, [&]<int ROWS>(int64_t row) {
        constexpr int TOGETHER = vectors_together(ROWS);
        for (int vectors = 0; vectors < std::min<int64_t>(KEY_VECTORS, count - start); vectors += TOGETHER)
          gemm_panels<ROWS, TOGETHER>(
              rows.queries + row * rows.width, rows.width, 1, rows.width / 2, BF16_LANES,
              [&](int64_t, int vector) { return keys[first + std::min(start + vectors + vector, count - 1)]; },
              [&](int64_t, int64_t pair) {
                if (!small) return;
                for (int vector = vectors; vector < vectors + TOGETHER; ++vector) {
                  _mm_prefetch(reinterpret_cast<const char*>(next_keys[vector] + pair * BF16_LANES), _MM_HINT_T0);
                  _mm_prefetch(reinterpret_cast<const char*>(next_values[vector] + pair * BF16_LANES), _MM_HINT_T0);
                }
              },
              [](int, int) { return zero(); },
              [&](int offset, int vector, Floats sums) {
                store(rows.scores + (row + offset) * POSITIONS + (start + vectors + vector) * BLOCK, sums);
              });
      });
    }
  }

  // acc += weights * values, for blocks [first, first + count), VECTORS * 16 columns at a time.
  template <int VECTORS, int MAX>
  static void accumulate_columns(QueryRows& rows, const BlockTable& values, int64_t first, int64_t count) {
    for (int64_t column = 0; column < rows.width; column += VECTORS * LANES)
      dispatch_tiles<MAX>(rows.count, [&]<int ROWS>(int64_t row) {
        float* sums = rows.acc + row * rows.width + column;
        gemm_panels<ROWS, VECTORS>(
            rows.weights + row * POSITIONS, POSITIONS, count, BLOCK / 2, 2 * rows.width,
            [&](int64_t block, int vector) { return values[first + block] + 2 * column + vector * BF16_LANES; },
            [](int64_t, int64_t) {},
            [&](int offset, int vector) { return load(sums + offset * rows.width + vector * LANES); },
            [&](int offset, int vector, Floats result) {
              store(sums + offset * rows.width + vector * LANES, result);
            });
      });
  }

  // acc += weights * values, for blocks [first, first + count).
  static void accumulate_values(QueryRows& rows, const BlockTable& values, int64_t first, int64_t count) {
    if constexpr (vectors_together(MAX_ROWS) == 1)
      accumulate_columns<1, MAX_ROWS>(rows, values, first, count);
    else if (rows.width % (4 * LANES) == 0)
      accumulate_columns<4, 6>(rows, values, first, count);
    else
      accumulate_columns<2, MAX_ROWS>(rows, values, first, count);
  }
};

}  // namespace steering

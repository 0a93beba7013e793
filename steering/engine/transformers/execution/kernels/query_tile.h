// A tile of queries that share one key-value head, against the cached blocks of one sequence, by online softmax.
//
// Data layout of the cache, for one block of 16 positions and one head: keys [pair of inputs][position][2], values
// [pair of positions][column][2]. Both are the operand layout of VDPBF16PS, so nothing is packed when it is read.
//
// Algorithm: 192 positions at a time (12 blocks, beginning at multiples of 192): scores by register-blocked GEMM, softmax
// with a running maximum, weighted sum of the values by register-blocked GEMM. Scores and sums are float32, weights are
// rounded to bfloat16.
//
// Invariant: a token's result depends on its own query and past alone, in one order of operations, so it has the same bits
// whether it is decoded or read as part of a prompt, and however prompts are cut and batched.
#pragma once
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace steering {

constexpr int64_t BLOCK = 16;                 // positions in a block: one register of scores
constexpr int64_t STEP_BLOCKS = 12;
constexpr int64_t POSITIONS = STEP_BLOCKS * BLOCK;
constexpr int KEY_VECTORS = 3;                // blocks whose scores are computed together

// The blocks of one sequence in the cache of one head.
struct BlockTable {
  const bf16* states;
  const int64_t* blocks;
  int64_t block_size;

  const bf16* operator[](int64_t index) const { return states + blocks[index] * block_size; }
};

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

// Row r is query head r % group of token r / group. acc, row_max and row_sum are the state of the online softmax.
struct QueryTile {
  int64_t tokens, group, width, first_position;
  std::vector<bf16> queries, weights;
  std::vector<float> scores, acc, row_max, row_sum;

  int64_t rows() const { return tokens * group; }
  int64_t position(int64_t row) const { return first_position + row / group; }

  void reset(int64_t tokens_, int64_t group_, int64_t width_, int64_t first_position_) {
    tokens = tokens_, group = group_, width = width_, first_position = first_position_;
    queries.resize(rows() * width);
    weights.resize(rows() * POSITIONS);
    scores.resize(rows() * POSITIONS);
    acc.assign(rows() * width, 0.0f);
    row_max.assign(rows(), -INFINITY);
    row_sum.assign(rows(), 0.0f);
  }

  // scores = queries * keys, for blocks [first, first + count). A tile of few rows waits for memory, and blocks are too
  // short for the hardware prefetcher: the next keys and the values of the same positions are prefetched.
  void compute_scores(const BlockTable& keys, const BlockTable& values, int64_t first, int64_t count) {
    const bool small = rows() <= MAX_ROWS;
    for (int64_t start = 0; start < count; start += KEY_VECTORS) {
      const bf16 *next_keys[KEY_VECTORS], *next_values[KEY_VECTORS];
      for (int vector = 0; vector < KEY_VECTORS; ++vector) {
        next_keys[vector] = keys[first + std::min(start + KEY_VECTORS + vector, count - 1)];
        next_values[vector] = values[first + std::min(start + vector, count - 1)];
      }
      dispatch_tiles<MAX_ROWS>(rows(), [&]<int ROWS>(int64_t row) {
        gemm_panels<ROWS, KEY_VECTORS>(
            queries.data() + row * width, width, 1, width / 2, BF16_LANES,
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
              _mm512_storeu_ps(scores.data() + (row + offset) * POSITIONS + (start + vector) * BLOCK, sums);
            });
      });
    }
  }

  // Turns the scores of one row into weights, and rescales its accumulator if there is a new maximum. `start`: position of
  // the first score; `count`: scores, a multiple of BLOCK.
  void softmax_row(int64_t row, int64_t start, int64_t count, const ScoreOptions& options) {
    bf16* out = weights.data() + row * POSITIONS;
    float* values = scores.data() + row * POSITIONS;
    const int64_t begin = std::clamp<int64_t>(options.first_visible(position(row)) - start, 0, count);
    const int64_t end = std::clamp<int64_t>(position(row) + 1 - start, 0, count);
    if (begin >= end) {
      std::fill_n(out, count, bf16{0});
      return;
    }
    const auto visible = [&](int64_t at) { return static_cast<__mmask16>(first_lanes(end - at) & ~first_lanes(begin - at)); };
    __m512 maxima = _mm512_set1_ps(-INFINITY);
    for (int64_t at = 0; at < end; at += LANES) {
      const __m512 block = options.score(_mm512_loadu_ps(values + at));
      _mm512_storeu_ps(values + at, block);
      maxima = _mm512_mask_max_ps(maxima, visible(at), maxima, block);
    }
    const float before = row_max[row], now = std::max(before, _mm512_reduce_max_ps(maxima));
    __m512 total = _mm512_setzero_ps();
    for (int64_t at = 0; at < count; at += LANES) {
      __m512 weight = _mm512_setzero_ps();
      if (at < end) {
        weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(values + at), _mm512_set1_ps(now)));
        weight = _mm512_maskz_mov_ps(visible(at), weight);
        total = _mm512_add_ps(total, weight);
      }
      store_bf16(out + at, weight);
    }
    row_max[row] = now;
    if (now != before) rescale(row, before == -INFINITY ? 0.0f : std::exp(before - now));
    row_sum[row] += _mm512_reduce_add_ps(total);
  }

  void rescale(int64_t row, float factor) {
    row_sum[row] *= factor;
    float* sums = acc.data() + row * width;
    for (int64_t at = 0; at < width; at += LANES)
      _mm512_storeu_ps(sums + at, _mm512_mul_ps(_mm512_loadu_ps(sums + at), _mm512_set1_ps(factor)));
  }

  // acc += weights * values, for blocks [first, first + count), VECTORS * 16 columns at a time.
  template <int VECTORS, int MAX>
  void accumulate_values(const BlockTable& values, int64_t first, int64_t count) {
    for (int64_t column = 0; column < width; column += VECTORS * LANES)
      dispatch_tiles<MAX>(rows(), [&]<int ROWS>(int64_t row) {
        float* sums = acc.data() + row * width + column;
        gemm_panels<ROWS, VECTORS>(
            weights.data() + row * POSITIONS, POSITIONS, count, BLOCK / 2, 2 * width,
            [&](int64_t block, int vector) { return values[first + block] + 2 * column + vector * BF16_LANES; },
            [](int64_t, int64_t) {},
            [&](int offset, int vector) { return _mm512_loadu_ps(sums + offset * width + vector * LANES); },
            [&](int offset, int vector, __m512 result) {
              _mm512_storeu_ps(sums + offset * width + vector * LANES, result);
            });
      });
  }

  // Attends to all visible positions of one sequence.
  void attend(const BlockTable& keys, const BlockTable& values, const ScoreOptions& options) {
    const int64_t last = first_position + tokens;
    for (int64_t start = options.first_visible(first_position) / POSITIONS * POSITIONS; start < last; start += POSITIONS) {
      const int64_t first = start / BLOCK, count = (std::min(POSITIONS, last - start) + BLOCK - 1) / BLOCK;
      compute_scores(keys, values, first, count);
      for (int64_t row = 0; row < rows(); ++row) softmax_row(row, start, count * BLOCK, options);
      if (width % (4 * LANES) == 0)
        accumulate_values<4, 6>(values, first, count);
      else
        accumulate_values<2, MAX_ROWS>(values, first, count);
    }
  }

  // Writes acc / row_sum of one row.
  void store_row(int64_t row, bf16* to) const {
    const __m512 factor = _mm512_set1_ps(1.0f / row_sum[row]);
    for (int64_t at = 0; at < width; at += LANES)
      store_bf16(to + at, _mm512_mul_ps(_mm512_loadu_ps(acc.data() + row * width + at), factor));
  }
};

}  // namespace steering

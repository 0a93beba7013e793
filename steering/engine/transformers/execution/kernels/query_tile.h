// QueryTile: online softmax attention of a tile of queries (FlashAttention, arXiv 2205.14135) in bfloat16 with float32 scores
// and sums. Used by prefill attention.
//
// Data layout: a tile holds the rows of several tokens times the query heads of one key-value head. Cached positions are taken
// in blocks of POSITIONS. Keys and values of a block, (position, width) in the cache, are packed into the panels of
// gemm_tile.h: keys with positions as columns, values with positions as inputs. Blocks begin at multiples of POSITIONS, so
// the order of sums, and thus a token's bits, do not depend on how a prompt is cut into pieces.
#pragma once
#include "attention.h"

#include <cmath>
#include <vector>

namespace steering {

constexpr int KEY_VECTORS = 3;
constexpr int64_t KEY_PANEL = KEY_VECTORS * LANES;  // positions in a panel of keys
constexpr int64_t POSITIONS = 4 * KEY_PANEL;        // positions in a block
constexpr int VALUE_VECTORS = 2;
constexpr int64_t VALUE_PANEL = VALUE_VECTORS * LANES;  // columns in a panel of values

// Transposes sixteen rows of sixteen pairs: pair p of row r becomes element r of row p.
inline void transpose_pairs(const bf16* const (&rows)[16], bf16* out, int64_t stride) {
  __m512i in[16], pairs[16], fours[16];
  for (int i = 0; i < 16; ++i) in[i] = _mm512_loadu_si512(rows[i]);
  for (int i = 0; i < 8; ++i) {
    pairs[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    fours[4 * i] = _mm512_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
    fours[4 * i + 1] = _mm512_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
    fours[4 * i + 2] = _mm512_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
    fours[4 * i + 3] = _mm512_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // column i of each 128-bit lane, from the four groups of rows
    const __m512i even_low = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0x88),
                  odd_low = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0xdd),
                  even_high = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0x88),
                  odd_high = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0xdd);
    _mm512_storeu_si512(out + i * stride, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_storeu_si512(out + (4 + i) * stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(out + (8 + i) * stride, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_storeu_si512(out + (12 + i) * stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}

// Packs keys (position, width) into panels of KEY_PANEL positions; positions after the last repeat it.
inline void pack_keys(const bf16* keys, int64_t width, int64_t count, bf16* panels) {
  for (int64_t start = 0; start < count; start += LANES) {
    bf16* panel = panels + start / KEY_PANEL * width * KEY_PANEL + start % KEY_PANEL * 2;
    for (int64_t at = 0; at < width; at += BF16_LANES) {
      const bf16* rows[16];
      for (int i = 0; i < 16; ++i) rows[i] = keys + std::min(start + i, count - 1) * width + at;
      transpose_pairs(rows, panel + at / 2 * KEY_PANEL * 2, KEY_PANEL * 2);
    }
  }
}

// Packs values (position, width) into panels of VALUE_PANEL columns; a missing second position of the last pair is zero.
inline void pack_values(const bf16* values, int64_t width, int64_t count, bf16* panels) {
  const int64_t pairs = (count + 1) / 2;
  const auto widen = [](const bf16* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  };
  for (int64_t pair = 0; pair < pairs; ++pair)
    for (int64_t column = 0; column < width; column += VALUE_PANEL) {
      const bf16* value = values + 2 * pair * width + column;
      bf16* to = panels + column * 2 * pairs + pair * VALUE_PANEL * 2;
      for (int part = 0; part < VALUE_VECTORS; ++part) {
        __m512i both = widen(value + part * LANES);
        if (2 * pair + 1 < count) both = _mm512_or_si512(both, _mm512_slli_epi32(widen(value + width + part * LANES), 16));
        _mm512_storeu_si512(to + part * BF16_LANES, both);
      }
    }
}

// Row r is query head r % group of token r / group. acc, row_max and row_sum are the state of the online softmax.
struct QueryTile {
  int64_t tokens, group, width, first_position;
  std::vector<bf16> queries, weights, key_panels, value_panels;
  std::vector<float> scores, acc, row_max, row_sum;

  int64_t rows() const { return tokens * group; }
  int64_t position(int64_t row) const { return first_position + row / group; }

  void reset(int64_t tokens_, int64_t group_, int64_t width_, int64_t first_position_) {
    tokens = tokens_, group = group_, width = width_, first_position = first_position_;
    queries.resize(rows() * width);
    weights.resize(rows() * POSITIONS);
    key_panels.resize(POSITIONS * width);
    value_panels.resize(POSITIONS * width);
    scores.resize(rows() * POSITIONS);
    acc.assign(rows() * width, 0.0f);
    row_max.assign(rows(), -INFINITY);
    row_sum.assign(rows(), 0.0f);
  }

  // scores = queries * packed keys, for `count` positions.
  void compute_scores(int64_t count) {
    Prefetch none;
    for (int64_t start = 0; start < count; start += KEY_PANEL)
      for_each_tile(rows(), [&](int64_t row, int64_t tile_rows) {
        gemm_rows<KEY_VECTORS>(
            tile_rows, queries.data() + row * width, width, key_panels.data() + start * width, width / 2, none,
            [](int, int) { return _mm512_setzero_ps(); },
            [&](int offset, int vector, __m512 sums) {
              _mm512_storeu_ps(scores.data() + (row + offset) * POSITIONS + start + vector * LANES, sums);
            });
      });
  }

  // Turns the scores of one row into weights, and rescales its accumulator if the block holds a new maximum.
  void softmax_row(int64_t row, int64_t start, int64_t count, const ScoreOptions& options) {
    bf16* out = weights.data() + row * POSITIONS;
    float* values = scores.data() + row * POSITIONS;
    const int64_t begin = std::clamp<int64_t>(options.first_visible(position(row)) - start, 0, count);
    const int64_t end = std::clamp<int64_t>(position(row) + 1 - start, 0, count);
    const int64_t padded = count + count % 2;
    if (begin >= end) {
      std::fill_n(out, padded, bf16{0});
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
    for (int64_t at = 0; at < padded; at += LANES) {
      __m512 weight = _mm512_setzero_ps();
      if (at < end) {
        weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(values + at), _mm512_set1_ps(now)));
        weight = _mm512_maskz_mov_ps(visible(at), weight);
        total = _mm512_add_ps(total, weight);
      }
      _mm256_mask_storeu_epi16(out + at, first_lanes(padded - at), to_bf16(weight));
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

  // acc += weights * packed values, for `count` positions.
  void accumulate_values(int64_t count) {
    Prefetch none;
    const int64_t pairs = (count + 1) / 2;
    for (int64_t column = 0; column < width; column += VALUE_PANEL)
      for_each_tile(rows(), [&](int64_t row, int64_t tile_rows) {
        float* sums = acc.data() + row * width + column;
        gemm_rows<VALUE_VECTORS>(
            tile_rows, weights.data() + row * POSITIONS, POSITIONS, value_panels.data() + column * 2 * pairs, pairs, none,
            [&](int offset, int vector) { return _mm512_loadu_ps(sums + offset * width + vector * LANES); },
            [&](int offset, int vector, __m512 result) {
              _mm512_storeu_ps(sums + offset * width + vector * LANES, result);
            });
      });
  }

  // Attends to all visible positions of one slot's keys and values (position, width).
  void attend(const bf16* keys, const bf16* values, const ScoreOptions& options) {
    const int64_t last = first_position + tokens;
    for (int64_t start = options.first_visible(first_position) / POSITIONS * POSITIONS; start < last; start += POSITIONS) {
      const int64_t count = std::min(POSITIONS, last - start);
      pack_keys(keys + start * width, width, count, key_panels.data());
      compute_scores(count);
      for (int64_t row = 0; row < rows(); ++row) softmax_row(row, start, count, options);
      pack_values(values + start * width, width, count, value_panels.data());
      accumulate_values(count);
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

// A tile of queries that share one key-value head, against the cached blocks of one sequence, by online softmax.
//
// Data layout of the cache, for one block of 16 positions and one head: keys [pair of inputs][position][2], values
// [pair of positions][column][2]. Both are the operand layout of VDPBF16PS, so nothing is packed when it is read.
//
// Algorithm: 192 positions at a time (12 blocks, beginning at multiples of 192), and for these 32 rows at a time, whose scores and weights
// stay in the L1 cache: scores, softmax with a running maximum, weighted sum of the values. Scores and sums are float32, weights are
// rounded to bfloat16. The products are in attention_tiles.h and attention_vectors.h.
//
// Invariant: a token's result depends on its own query and past alone, in one order of operations, so it has the same bits
// whether it is decoded or read as part of a prompt, and however prompts are cut and batched.
#pragma once
#include "gemm_tile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

namespace steering {

constexpr int64_t BLOCK = 16;                 // positions in a block: one register of scores
constexpr int64_t STEP_BLOCKS = 12;
constexpr int64_t POSITIONS = STEP_BLOCKS * BLOCK;
constexpr int64_t ROW_BLOCK = 16;             // rows of a tile register
constexpr int64_t PART_ROWS = 2 * ROW_BLOCK;  // rows that go through all steps together

// How a score is made from a product of query and key. window: how many positions a token sees (none: all before it).
struct ScoreOptions {
  float scaling;
  std::optional<int64_t> window;
  std::optional<double> softcap;

  int64_t first_visible(int64_t position) const { return window ? std::max<int64_t>(0, position - *window + 1) : 0; }

  // Scales and caps products of query and key.
  Floats capped(Floats products) const {
    const Floats cap = broadcast(static_cast<float>(*softcap));
    return map(products * broadcast(scaling) / cap, [](Register part) { return part.tanh(); }) * cap;
  }

  // exp(score) is 2^(factor * x), where x is a capped score or, without softcap, a product of query and key.
  float exponent_factor() const {
    constexpr float LOG2_E = 1.44269504f;
    return softcap ? LOG2_E : LOG2_E * scaling;
  }
};

// 2^x by a polynomial of degree 4 in the fraction of x, fitted on [-0.5, 0.5]: a relative error of 2.6e-6, far below that
// of rounding to bfloat16. Inputs far below -126 become 0, -infinity too.
inline Floats power_of_two(Floats x) {
  const Floats power = bounded_power(x), whole = rounded(power), fraction = power - whole;
  Floats sum = broadcast(0.0095700873f);
  for (const float coefficient : {0.055917859f, 0.24024746f, 0.69312179f, 0.99999928f})
    sum = fma(sum, fraction, broadcast(coefficient));
  return scaled(sum, whole);
}

// Calls call(at, mask) for each group of 16 lanes with one in [begin, end); only the first and the last need a mask.
template <class Call>
inline void for_visible(int64_t begin, int64_t end, const Call& call) {
  const int64_t first = begin / LANES * LANES, last = (end - 1) / LANES * LANES;
  const auto from_begin = static_cast<Mask>(~first_lanes(begin - first));
  const Mask to_end = first_lanes(end - last);
  if (first == last) return call(first, static_cast<Mask>(from_begin & to_end));
  call(first, from_begin);
  for (int64_t at = first + LANES; at < last; at += LANES) call(at, Mask{0xffff});
  call(last, to_end);
}

// The blocks of one sequence in the cache of one head.
struct BlockTable {
  const bf16* states;
  const int64_t* blocks;
  int64_t block_size;

  const bf16* operator[](int64_t index) const { return states + blocks[index] * block_size; }
};

// Some rows of a tile. acc, row_max and row_sum are the state of the online softmax; scores and weights are of these positions alone.
// whole: they are all rows of the tile.
struct QueryRows {
  int64_t count, first, group, width, first_position;
  bool whole;
  Left *queries, *weights;
  float *scores, *acc, *row_max, *row_sum;

  int64_t row_block() const { return std::min(count, ROW_BLOCK); }
  int64_t row_blocks() const { return (count + row_block() - 1) / row_block(); }  // memory has whole blocks; nothing reads the rows at the end
  int64_t position(int64_t row) const { return first_position + (first + row) / group; }

  // The scores of a row that it sees, of `count` from position `start` on.
  std::pair<int64_t, int64_t> visible(int64_t row, int64_t start, int64_t count, const ScoreOptions& options) const {
    return {
        std::clamp<int64_t>(options.first_visible(position(row)) - start, 0, count),
        std::clamp<int64_t>(position(row) + 1 - start, 0, count)};
  }

  // Turns scores into weights, and rescales the accumulators of rows with a new maximum. `start`: position of the first score; `count`:
  // scores, a multiple of BLOCK. All maxima come first, so that no row waits for its own.
  void softmax(int64_t start, int64_t count, const ScoreOptions& options) {
    std::array<float, PART_ROWS> maxima;
    for (int64_t row = 0; row < this->count; ++row) maxima[row] = row_maximum(row, start, count, options);
    for (int64_t row = 0; row < this->count; ++row) softmax_row(row, start, count, maxima[row], options);
  }

  // The largest score of a row; with softcap the scores become the capped ones.
  float row_maximum(int64_t row, int64_t start, int64_t count, const ScoreOptions& options) {
    const auto [begin, end] = visible(row, start, count, options);
    if (begin >= end) return -INFINITY;
    float* values = scores + row * POSITIONS;
    const Floats lowest = broadcast(-INFINITY);
    Floats maxima = lowest;
    for_visible(begin, end, [&](int64_t at, Mask mask) __attribute__((always_inline)) {
      Floats block = load(values + at);
      if (options.softcap) {
        block = options.capped(block);
        store(values + at, block);
      }
      maxima = maximum(maxima, select(mask, block, lowest));
    });
    return maximum_of(maxima);
  }

  void softmax_row(int64_t row, int64_t start, int64_t count, float largest, const ScoreOptions& options) {
    const auto [begin, end] = visible(row, start, count, options);
    Left* out = weights + row * POSITIONS;
    if (begin >= end) {
      std::fill_n(out, count, Left{0});
      return;
    }
    const float* values = scores + row * POSITIONS;
    std::fill_n(out, begin / LANES * LANES, Left{0});
    const int64_t zeros = (end + LANES - 1) / LANES * LANES;
    std::fill_n(out + zeros, count - zeros, Left{0});
    const float before = row_max[row], now = std::max(before, largest);
    const float factor = options.exponent_factor();
    const Floats factors = broadcast(factor), shift = broadcast(-now * factor);
    Floats total = zero();
    for_visible(begin, end, [&](int64_t at, Mask mask) __attribute__((always_inline)) {
      const Floats exponent = fma(load(values + at), factors, shift);
      const Floats weight = select(mask, power_of_two(exponent), zero());
      total = total + weight;
      store_rounded(out + at, weight);
    });
    row_max[row] = now;
    if (now != before) rescale(row, before == -INFINITY ? 0.0f : std::exp2((before - now) * factor));
    row_sum[row] += sum_of(total);
  }

  void rescale(int64_t row, float factor) {
    row_sum[row] *= factor;
    float* sums = acc + row * width;
    for (int64_t at = 0; at < width; at += LANES) store(sums + at, load(sums + at) * broadcast(factor));
  }
};

// Row r is query head r % group of token r / group.
struct QueryTile {
  int64_t tokens, group, width, first_position;
  Left* queries;

  int64_t rows() const { return tokens * group; }

  void reset(int64_t tokens_, int64_t group_, int64_t width_, int64_t first_position_) {
    tokens = tokens_, group = group_, width = width_, first_position = first_position_;
    const int64_t stored = (rows() + ROW_BLOCK - 1) / ROW_BLOCK * ROW_BLOCK, together = std::min(stored, PART_ROWS);
    constexpr int64_t sizes = sizeof(Left) + sizeof(float);
    const int64_t needed = (stored * width + together * POSITIONS) * sizes + 2 * padded(rows() * 4) + 5 * GAP;  // five between six arrays
    memory.resize((needed + 63) / 64);
    std::byte* next = memory.data()->bytes;
    const auto take = [&](int64_t bytes) { return std::exchange(next, next + bytes + GAP); };
    queries = reinterpret_cast<Left*>(take(stored * width * sizeof(Left)));
    weights = reinterpret_cast<Left*>(take(together * POSITIONS * sizeof(Left)));
    scores = reinterpret_cast<float*>(take(together * POSITIONS * 4));
    acc = reinterpret_cast<float*>(take(stored * width * 4));
    row_max = reinterpret_cast<float*>(take(padded(rows() * 4)));
    row_sum = reinterpret_cast<float*>(next);
    std::fill_n(acc, stored * width, 0.0f);
    std::fill_n(row_max, rows(), -INFINITY);
    std::fill_n(row_sum, rows(), 0.0f);
  }

  // Up to PART_ROWS rows from the `first`.
  QueryRows part(int64_t first) const {
    const int64_t count = std::min(PART_ROWS, rows() - first);
    return {count, first, group, width, first_position, count == rows(), queries + first * width, weights, scores,
            acc + first * width, row_max + first, row_sum + first};
  }

  // Writes acc / row_sum of one row.
  void store_row(int64_t row, bf16* to) const {
    const Floats factor = broadcast(1.0f / row_sum[row]);
    for (int64_t at = 0; at < width; at += LANES) store_rounded(to + at, load(acc + row * width + at) * factor);
  }

 private:
  Left* weights;
  float *scores, *acc, *row_max, *row_sum;

  struct alignas(64) Line {
    std::byte bytes[64];
  };

  static int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  // Bytes between arrays. Without them, or in allocations of their own, arrays begin at the same place of a page, where stores to one
  // delay loads from another: 32 sequences of 65 positions take 57 microseconds a layer instead of 34 (AMD EPYC).
  static constexpr int64_t GAP = 3 * 64;

  std::vector<Line> memory;  // of all arrays
};

}  // namespace steering

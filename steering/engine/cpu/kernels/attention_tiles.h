// The products of attention by AMX tiles (TDPBF16PS) or their emulation: see query_tile.h.
//
// Registers: 0 to 3 hold the sums of up to two row blocks by two column blocks, 4 and 5 the left operand of the two row
// blocks, 6 and 7 the right operand of the two column blocks. A row block has up to 16 rows, a column block 16 columns.
//
// Invariant: the sum of an element runs over the inputs in steps of fixed size and order, whatever the number of rows, so a
// row's result has the same bits alone and in a batch.
#pragma once
#include "query_tile.h"
#include "tiles.h"

#include <algorithm>

namespace steering {

// Row blocks of `row_block` rows; each step multiplies `inputs` inputs (16 or 32).
inline TileConfig config_of(int64_t row_block, int64_t inputs) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool left = tile == 4 || tile == 5, right = tile > 5;
    config.set(tile, right ? inputs / 2 : row_block, left ? inputs * int64_t{sizeof(bf16)} : 64);
  }
  return config;
}

template <class Number>
constexpr int64_t bytes(int64_t count) {
  return count * static_cast<int64_t>(sizeof(Number));
}

// A matrix in memory as blocks: block(index, step) points to a tile whose rows are `stride` bytes apart.
template <class Block>
struct Blocks {
  Block block;
  int64_t stride;
};

// Adds left * right, `steps` products of one tile each, to ROWS x COLUMNS blocks of float32 sums. ZERO: the sums begin at 0.
template <class Tiles, int ROWS, int COLUMNS, bool ZERO, class Left, class Right, class Sums>
inline void multiply_tiles(int64_t steps, const Blocks<Left>& left, const Blocks<Right>& right, const Blocks<Sums>& sums) {
  if constexpr (ZERO) {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
  } else {
    Tiles::template load<0>(sums.block(0, 0), sums.stride);
    if constexpr (COLUMNS > 1) Tiles::template load<1>(sums.block(0, 1), sums.stride);
    if constexpr (ROWS > 1) Tiles::template load<2>(sums.block(1, 0), sums.stride);
    if constexpr (ROWS > 1 && COLUMNS > 1) Tiles::template load<3>(sums.block(1, 1), sums.stride);
  }
  for (int64_t step = 0; step < steps; ++step) {
    Tiles::template load<4>(left.block(0, step), left.stride);
    Tiles::template load<6>(right.block(0, step), right.stride);
    Tiles::template multiply<0, 4, 6>();
    if constexpr (COLUMNS > 1) {
      Tiles::template load<7>(right.block(1, step), right.stride);
      Tiles::template multiply<1, 4, 7>();
    }
    if constexpr (ROWS > 1) {
      Tiles::template load<5>(left.block(1, step), left.stride);
      Tiles::template multiply<2, 5, 6>();
      if constexpr (COLUMNS > 1) Tiles::template multiply<3, 5, 7>();
    }
  }
  Tiles::template store<0>(sums.block(0, 0), sums.stride);
  if constexpr (COLUMNS > 1) Tiles::template store<1>(sums.block(0, 1), sums.stride);
  if constexpr (ROWS > 1) Tiles::template store<2>(sums.block(1, 0), sums.stride);
  if constexpr (ROWS > 1 && COLUMNS > 1) Tiles::template store<3>(sums.block(1, 1), sums.stride);
}

// Walks row_blocks x column_blocks in steps of two by two: call.template operator()<ROWS, COLUMNS>(row block, column block).
template <class Call>
inline void for_each_block_pair(int64_t row_blocks, int64_t column_blocks, const Call& call) {
  for (int64_t row = 0; row < row_blocks; row += 2)
    for (int64_t column = 0; column < column_blocks; column += 2) {
      const bool rows = row + 1 < row_blocks, columns = column + 1 < column_blocks;
      if (rows && columns) call.template operator()<2, 2>(row, column);
      else if (rows) call.template operator()<2, 1>(row, column);
      else if (columns) call.template operator()<1, 2>(row, column);
      else call.template operator()<1, 1>(row, column);
    }
}

// Prefetches the keys of the COLUMNS blocks that follow, and the values of this many blocks.
template <int COLUMNS>
inline void prefetch_blocks(const BlockTable& keys, const BlockTable& values, int64_t width, int64_t block, int64_t end) {
  for (int64_t index = block; index < std::min(block + COLUMNS, end); ++index) {
    const auto* next = reinterpret_cast<const char*>(keys[std::min(index + COLUMNS, end - 1)]);
    const auto* value = reinterpret_cast<const char*>(values[index]);
    for (int64_t byte = 0; byte < BLOCK * width * int64_t{sizeof(bf16)}; byte += 64) {
      _mm_prefetch(next + byte, _MM_HINT_T0);
      _mm_prefetch(value + byte, _MM_HINT_T0);
    }
  }
}

template <class Tiles>
struct TileProducts {
  // scores = queries * keys, for blocks [first, first + count). Few rows wait for memory, and blocks are too short for the
  // hardware prefetcher: the next keys and the values of the same positions are prefetched.
  static void compute_scores(QueryRows& part, const BlockTable& keys, const BlockTable& values, int64_t first, int64_t count) {
    const int64_t width = part.width, rows = part.row_block(), blocks = part.row_blocks();
    const bf16* queries = part.queries;
    float* scores = part.scores;
    Tiles::configure(config_of(rows, BF16_LANES));
    for_each_block_pair(blocks, count, [&]<int ROWS, int COLUMNS>(int64_t row, int64_t column) {
      if (part.whole && blocks == 1) prefetch_blocks<COLUMNS>(keys, values, width, first + column, first + count);
      const Blocks left{
          [&](int r, int64_t step) { return queries + (row + r) * rows * width + step * BF16_LANES; }, bytes<bf16>(width)};
      const Blocks right{[&](int c, int64_t step) { return keys[first + column + c] + step * BF16_LANES * BLOCK; }, 64};
      const Blocks sums{
          [&](int r, int c) { return scores + (row + r) * rows * POSITIONS + (column + c) * BLOCK; }, bytes<float>(POSITIONS)};
      multiply_tiles<Tiles, ROWS, COLUMNS, true>(width / BF16_LANES, left, right, sums);
    });
  }

  // acc += weights * values, for blocks [first, first + count); a block of 16 positions is one step.
  static void accumulate_values(QueryRows& part, const BlockTable& values, int64_t first, int64_t count) {
    const int64_t width = part.width, rows = part.row_block();
    const bf16* weights = part.weights;
    float* acc = part.acc;
    Tiles::configure(config_of(rows, BLOCK));
    for_each_block_pair(part.row_blocks(), width / LANES, [&]<int ROWS, int COLUMNS>(int64_t row, int64_t column) {
      const Blocks left{
          [&](int r, int64_t step) { return weights + (row + r) * rows * POSITIONS + step * BLOCK; }, bytes<bf16>(POSITIONS)};
      const Blocks right{
          [&](int c, int64_t step) { return values[first + step] + (column + c) * BF16_LANES; }, bytes<bf16>(2 * width)};
      const Blocks sums{
          [&](int r, int c) { return acc + (row + r) * rows * width + (column + c) * LANES; }, bytes<float>(width)};
      multiply_tiles<Tiles, ROWS, COLUMNS, false>(count, left, right, sums);
    });
  }
};

}  // namespace steering

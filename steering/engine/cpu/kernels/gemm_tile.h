// Register-blocked bfloat16 GEMM: the inner loop of the linear layers and of attention.
//
// Data layout: the left operand has row-major rows of Left. The right operand is packed in panels of VECTORS * 16
// columns, [pair][column][2]: two consecutive inputs of one column lie together, which is the operand layout of
// VDPBF16PS (AVX512_BF16). Sums are float32 and stay in registers: up to MAX_ROWS rows times VECTORS vectors.
//
// Invariant: a column's sum runs over the inputs in one order for any number of rows, so a row's result has the same bits
// alone as in a batch, and with AVX2 as with AVX512_BF16.
#pragma once
#include <ATen/core/Tensor.h>
#include "lanes.h"

namespace steering {

inline const bf16* bf16_data(const at::Tensor& tensor) { return reinterpret_cast<const bf16*>(tensor.const_data_ptr()); }

inline bf16* mutable_bf16_data(const at::Tensor& tensor) { return reinterpret_cast<bf16*>(tensor.mutable_data_ptr()); }

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

// Multiplies ROWS rows of `left` (`stride` values apart) by panels of VECTORS * 16 columns, which are cut along the inputs
// into `blocks` pieces of `pairs` pairs: panel(block, vector) is the first pair of a piece, the next is `pair_stride` later.
// load(row, vector) returns the initial sums, store(row, vector, sums) takes the results, step(block, pair) is called once for
// each pair. Always inlined, so that strides are constants: 2 % faster from 256 rows on (AMD EPYC).
template <int ROWS, int VECTORS, class Panel, class Step, class Load, class Store>
[[gnu::always_inline]] inline void gemm_panels(
    const Left* left, int64_t stride, int64_t blocks, int64_t pairs, int64_t pair_stride, const Panel& panel,
    const Step& step, const Load& load, const Store& store) {
  Floats sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) sums[row][vector] = load(row, vector);
  for (int64_t block = 0; block < blocks; ++block) {
    const bf16* piece[VECTORS];
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) piece[vector] = panel(block, vector);
    const Left* inputs = left + block * pairs * 2;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      step(block, pair);
      add_products<ROWS, VECTORS>(sums, inputs + 2 * pair, stride, piece, pair * pair_stride);
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
      case 6: if constexpr (MAX > 5) call.template operator()<6>(first); break;
      case 7: if constexpr (MAX > 6) call.template operator()<7>(first); break;
      default: if constexpr (MAX > 7) call.template operator()<8>(first);
    }
  }
}

}  // namespace steering

// The tile registers of AMX_BF16, and the same in plain C++: what is written with them has the same bits on any processor, so that it
// is developed and tested without AMX.
#pragma once
#include "lanes.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstddef>

namespace steering {

constexpr int64_t TILE_ROWS = 16;

// How linear layers multiply, for every number of rows: by VDPBF16PS and in its order (PAIRS), or in the order of tiles (the others).
// EMULATED, for tests, makes attention use emulated tiles too.
enum class Products { PAIRS, TILES, FMA, EMULATED };
inline std::atomic<Products> products{Products::PAIRS};
inline std::atomic<int64_t> fma_rows{0};  // up to how many rows TILES multiplies by FMA, with the same bits

// The operand of the LDTILECFG instruction.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t count, int64_t bytes) {
    rows[tile] = static_cast<uint8_t>(count);
    column_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// TDPBF16PS: of each pair of inputs the even products are summed by FMA from zero, and so are the odd ones; even + odd is added to the
// sum. Subnormal inputs and results are zero. VDPBF16PS sums in another order and differs in most results, so the two are never mixed.
class EmulatedTiles {
 public:
  static void configure(const TileConfig& config) { registers() = {config, {}}; }
  static void release() {}

  template <int TILE>
  static void zero() {
    std::fill_n(&registers().data[TILE][0][0], sizeof registers().data[TILE], std::byte{0});
  }

  // stride: bytes between two rows.
  template <int TILE>
  static void load(const void* from, int64_t stride) {
    zero<TILE>();
    Registers& own = registers();
    for (int64_t row = 0; row < own.config.rows[TILE]; ++row)
      std::memcpy(own.data[TILE][row], static_cast<const std::byte*>(from) + row * stride, own.config.column_bytes[TILE]);
  }

  template <int TILE>
  static void store(void* to, int64_t stride) {
    const Registers& own = registers();
    for (int64_t row = 0; row < own.config.rows[TILE]; ++row)
      std::memcpy(static_cast<std::byte*>(to) + row * stride, own.data[TILE][row], own.config.column_bytes[TILE]);
  }

  template <int SUMS, int LEFT, int RIGHT>
  static void multiply() {
    Registers& own = registers();
    const int64_t columns = own.config.column_bytes[SUMS] / 4, pairs = own.config.column_bytes[LEFT] / 4;
    for (int64_t row = 0; row < own.config.rows[SUMS]; ++row)
      for (int64_t column = 0; column < columns; ++column) {
        float halves[2] = {0, 0};
        for (int64_t pair = 0; pair < pairs; ++pair)
          for (int64_t odd = 0; odd < 2; ++odd)
            halves[odd] = flushed(std::fma(own.number(LEFT, row, 2 * pair + odd), own.number(RIGHT, pair, 2 * column + odd), halves[odd]));
        float sum;
        std::memcpy(&sum, own.data[SUMS][row] + 4 * column, 4);
        sum = flushed(flushed(sum) + flushed(halves[0] + halves[1]));
        std::memcpy(own.data[SUMS][row] + 4 * column, &sum, 4);
      }
  }

 private:
  struct Registers {
    TileConfig config;
    alignas(64) std::byte data[8][TILE_ROWS][64];

    float number(int tile, int64_t row, int64_t index) const {
      bf16 bits;
      std::memcpy(&bits, data[tile][row] + 2 * index, 2);
      return flushed(to_float(bits));
    }
  };

  static float flushed(float value) { return std::fabs(value) < FLT_MIN ? std::copysign(0.0f, value) : value; }

  static Registers& registers() {
    static thread_local Registers own;
    return own;
  }
};

// Subnormal numbers are zero in this thread while it exists, as they are in tiles.
class FlushSubnormals {
 public:
  FlushSubnormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned before;
};

#ifdef __AMX_BF16__

// Instructions by name: the intrinsics of GCC are macros that make the register's name of the argument's text, so a template's
// parameter cannot be one. "memory": no read or write moves past an instruction that reads or writes memory itself.
class AmxTiles {
 public:
  static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  static void release() { asm volatile("tilerelease" ::: "memory"); }

  template <int TILE>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
  }

  template <int TILE>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
  }

  template <int TILE>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
  }

  template <int SUMS, int LEFT, int RIGHT>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(LEFT), "i"(RIGHT));
  }
};

#endif

}  // namespace steering

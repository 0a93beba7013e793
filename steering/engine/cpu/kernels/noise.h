// The noise of sampling.py: its words, its Gumbel numbers, and a bound of these that needs no logarithm.
#pragma once
#include "lanes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace steering {

constexpr int NOISE_BITS = 24;
constexpr float LN2_ABOVE = 0.69315f, NOISE_MARGIN = 1e-3f;  // more than float32 rounds

// numpy's SFC64: its state after seeding, and the same words.
struct Generator {
  uint64_t a, b, c, count;

  uint64_t next() {
    const uint64_t result = a + b + count++;
    a = b ^ (b >> 11);
    b = c + (c << 3);
    c = ((c << 24) | (c >> 40)) + result;
    return result;
  }
};

// u = word / 2^24 in [0, 1), 0 as half a step -> -log(-log(u)).
inline float gumbel(int32_t word) { return -std::log(-std::log(std::max(static_cast<float>(word), 0.5f) * 0x1p-24f)); }

// -log(-log(u)) <= -log(1 - u), as -log(u) >= 1 - u; and 1 - u >= 2^(e - 24), where e is the exponent of 2^24 - word.
inline Floats noise_bound(Words words) {
  const Floats rest = numbers_of(minus(broadcast_word(1 << NOISE_BITS), words));
  const Words exponent = minus(shifted_right<23>(bits_of(rest)), broadcast_word(127));
  const Words halvings = minus(broadcast_word(NOISE_BITS), exponent);
  return fma(numbers_of(halvings), broadcast(LN2_ABOVE), broadcast(NOISE_MARGIN));
}

}  // namespace steering

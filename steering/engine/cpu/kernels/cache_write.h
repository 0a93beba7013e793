// Writes the keys and values of a pass to the blocks of the cache; see query_tile.h for the layout of a block.
#pragma once
#include "query_tile.h"
#include "rotation.h"

#include <vector>

namespace steering {

// `tokens` tokens of the pass from the `first`, the first of them at `position` of the sequence with these `blocks`.
struct Segment {
  int64_t first, tokens, position;
  const int64_t* blocks;

  // `count` tokens of it, from the one at `offset`.
  Segment part(int64_t offset, int64_t count) const { return {first + offset, count, position + offset, blocks}; }

  // Other segments of the pass may read blocks that are full, and none that are not.
  bool fills_block() const { return position / BLOCK != (position + tokens) / BLOCK; }

  // Whether the tile that reads a new position writes it too: with one tile a head, and no reader of its blocks elsewhere.
  // Measured with huge pages, in turns with the commit before paged blocks: 96 / 94 / 93 % of its tokens/s at 1 / 8 / 32
  // requests, 95 / 91 / 93 % when all positions were written before all tiles (AMD EPYC, two cores).
  bool written_by_its_tile(int64_t tile_tokens) const { return tokens <= tile_tokens && !fills_block(); }
};

// Access to the vectors of a tensor (1, head, token, width) by token and head; its last dimension is contiguous.
struct HeadRows {
  const bf16* data;
  int64_t row_stride, head_stride;

  explicit HeadRows(const at::Tensor& states)
      : data(bf16_data(states)), row_stride(states.stride(2)), head_stride(states.stride(1)) {}

  const bf16* operator()(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

inline at::Tensor contiguous_heads(const at::Tensor& states) { return states.stride(3) == 1 ? states : states.contiguous(); }

// Transposes sixteen rows of sixteen pairs: pair p of row r becomes element r of row p.
inline void transpose_pairs(const bf16* const (&rows)[16], bf16* out) {
#ifdef __AVX512BF16__
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
    _mm512_storeu_si512(out + i * BF16_LANES, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_storeu_si512(out + (4 + i) * BF16_LANES, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(out + (8 + i) * BF16_LANES, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_storeu_si512(out + (12 + i) * BF16_LANES, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
#else
  for (int pair = 0; pair < 16; ++pair)
    for (int row = 0; row < 16; ++row) std::memcpy(out + pair * BF16_LANES + 2 * row, rows[row] + 2 * pair, 2 * sizeof(bf16));
#endif
}

// The new keys and values of a pass, and the cache that they are written to, by head. Keys are rotated when they are written.
struct States {
  HeadRows keys, values;
  Rotation rotation;
  bf16 *cached_keys, *cached_values;
  int64_t head_size, width;
};

// Writes the keys of a segment for one head: whole blocks by transposition, other positions pair by pair.
inline void write_keys(
    const HeadRows& keys, const Rotation& rotation, int64_t head, const Segment& segment, bf16* states, int64_t width) {
  thread_local std::vector<bf16> buffer;  // a block of rotated keys
  buffer.resize(BLOCK * width);
  bf16* rotated = buffer.data();
  const auto key_of = [&](int64_t token) {
    const bf16* key = keys(segment.first + token, head);
    if (!rotation) return key;
    bf16* out = rotated + token % BLOCK * width;
    rotation.apply(key, segment.first + token, width, out);
    return static_cast<const bf16*>(out);
  };
  for (int64_t token = 0; token < segment.tokens;) {
    const int64_t position = segment.position + token, offset = position % BLOCK;
    bf16* block = states + segment.blocks[position / BLOCK] * BLOCK * width;
    if (offset == 0 && token + BLOCK <= segment.tokens) {
      const bf16* rows[BLOCK];
      for (int64_t i = 0; i < BLOCK; ++i) rows[i] = key_of(token + i);
      for (int64_t at = 0; at < width; at += BF16_LANES) {
        transpose_pairs(rows, block + at * BLOCK);
        for (const bf16*& row : rows) row += BF16_LANES;
      }
      token += BLOCK;
      continue;
    }
    const bf16* key = key_of(token);
    for (int64_t at = 0; at < width; at += 2) std::memcpy(block + at * BLOCK + 2 * offset, key + at, 2 * sizeof(bf16));
    ++token;
  }
}

// Writes the values of a segment for one head, each into every other number of its pair's row.
inline void write_values(const HeadRows& values, int64_t head, const Segment& segment, bf16* states, int64_t width) {
  for (int64_t token = 0; token < segment.tokens; ++token) {
    const int64_t position = segment.position + token, offset = position % BLOCK;
    bf16* row = states + (segment.blocks[position / BLOCK] * BLOCK + offset / 2 * 2) * width;
    const bf16* value = values(segment.first + token, head);
    for (int64_t at = 0; at < width; at += LANES) store_alternating(row + 2 * at, value + at, offset % 2);
  }
}

inline void write_states(const States& states, int64_t head, const Segment& segment) {
  write_keys(states.keys, states.rotation, head, segment, states.cached_keys + head * states.head_size, states.width);
  write_values(states.values, head, segment, states.cached_values + head * states.head_size, states.width);
}

}  // namespace steering

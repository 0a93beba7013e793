// Attention over cache slots in bfloat16: each token over what its own slot holds up to its own position, and no further.
//
// Scores, weights and sums are float32. What a token gets depends on no other row: neither on who runs beside it nor on
// how prompts are cut into pieces, since blocks of positions begin at multiples of their size.
#include "graph_entry.h"
#include "operations.h"
#include "tile.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

namespace {

using namespace steering;

constexpr int64_t HALVES = 2 * LANES;       // halves a register
constexpr int KEY_VECTORS = 3;              // vectors of a panel of keys
constexpr int64_t KEY_WIDTH = KEY_VECTORS * LANES;
constexpr int64_t POSITIONS = 4 * KEY_WIDTH;  // that scores are made for at a time
constexpr int VALUE_VECTORS = 2;
constexpr int64_t VALUE_WIDTH = VALUE_VECTORS * LANES;
constexpr int MOST_HEADS = 4;  // that go through the values together: four registers each
constexpr int64_t QUESTIONS = 192;  // rows that go through a block of positions together: tokens times heads of a key

// How scores are made. window: how many positions are seen. softcap: what they are bent to.
struct Terms {
  float scaling;
  std::optional<int64_t> window;
  std::optional<double> softcap;

  int64_t first_seen(int64_t position) const { return window ? std::max<int64_t>(0, position - *window + 1) : 0; }

  __m512 of(__m512 products) const {
    const __m512 scores = _mm512_mul_ps(products, _mm512_set1_ps(scaling));
    if (!softcap) return scores;
    const at::vec::Vectorized<float> cap(static_cast<float>(*softcap));
    return (at::vec::Vectorized<float>(scores) / cap).tanh() * cap;
  }
};

__m512 exponential(__m512 numbers) { return at::vec::Vectorized<float>(numbers).exp_u20(); }

__mmask16 lanes(int64_t count) { return count >= LANES ? 0xffff : static_cast<__mmask16>((1u << std::max<int64_t>(count, 0)) - 1); }

// The sums of sixteen registers, in order.
__m512 sums_of(__m512 (&rows)[16]) {
  __m512 pairs[8], fours[4];
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_add_ps(
        _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d left = _mm512_castps_pd(pairs[2 * i]), right = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(left, right)), _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
  }
  const auto joined = [](__m512 left, __m512 right) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x88), _mm512_shuffle_f32x4(left, right, 0xdd));
  };
  return joined(joined(fours[0], fours[1]), joined(fours[2], fours[3]));
}

// Where a tensor's (row, head) begins, when the last dimension lies together.
struct Rows {
  const half* data;
  int64_t row, head;

  const half* operator()(int64_t at_row, int64_t at_head) const { return data + at_row * row + at_head * head; }
};

Rows rows_of(const at::Tensor& tensor, int64_t row_dimension, int64_t head_dimension) {
  return {
      reinterpret_cast<const half*>(tensor.const_data_ptr()), tensor.stride(row_dimension), tensor.stride(head_dimension)};
}

at::Tensor together(const at::Tensor& given) { return given.stride(3) == 1 ? given : given.contiguous(); }

// ---- one token a row

// scores[i] of positions first + i: products of one question with keys (position, width). Meanwhile `ahead` is fetched, as
// many numbers as the keys.
float score(
    const half* question, const half* keys, int64_t width, int64_t count, const Terms& terms, const half* ahead,
    float* scores) {
  __m512 highest = _mm512_set1_ps(-INFINITY);
  for (int64_t start = 0; start < count; start += LANES) {
    __m512 products[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) products[i] = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += HALVES) {
      const __m512bh asked = load_pairs(question + at);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const half* key = keys + std::min(start + i, count - 1) * width + at;
        products[i] = _mm512_dpbf16_ps(products[i], asked, load_pairs(key));
        if (ahead) _mm_prefetch(reinterpret_cast<const char*>(ahead + (start + i) * width + at), _MM_HINT_T0);
      }
    }
    const __m512 found = terms.of(sums_of(products));
    _mm512_storeu_ps(scores + start, found);
    highest = _mm512_mask_max_ps(highest, lanes(count - start), highest, found);
  }
  return _mm512_reduce_max_ps(highest);
}

// Scores become e^(score - highest); their sum.
float weigh(float* scores, int64_t count, float highest) {
  __m512 total = _mm512_setzero_ps();
  for (int64_t start = 0; start < count; start += LANES) {
    const __m512 weights = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + start), _mm512_set1_ps(highest)));
    _mm512_storeu_ps(scores + start, weights);
    total = _mm512_mask_add_ps(total, lanes(count - start), total, weights);
  }
  return _mm512_reduce_add_ps(total);
}

// A stretch of PARTS registers of values (position, width) by the weights of HEADS heads, each `stride` apart. Meanwhile
// `ahead` is fetched, as many numbers as the values.
template <int HEADS, int PARTS>
void gather(
    const half* values, int64_t width, int64_t count, const float* weights, int64_t stride, const float* totals,
    const half* ahead, half* out) {
  __m512 sums[HEADS][PARTS];
#pragma GCC unroll 4
  for (int head = 0; head < HEADS; ++head)
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) sums[head][part] = _mm512_setzero_ps();
  for (int64_t position = 0; position < count; ++position) {
    __m512 value[PARTS];
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) {
      value[part] = widened(values + position * width + part * LANES);
      if (ahead && part % 2 == 0)
        _mm_prefetch(reinterpret_cast<const char*>(ahead + position * width + part * LANES), _MM_HINT_T1);
    }
#pragma GCC unroll 4
    for (int head = 0; head < HEADS; ++head) {
      const __m512 weight = _mm512_set1_ps(weights[head * stride + position]);
#pragma GCC unroll 4
      for (int part = 0; part < PARTS; ++part) sums[head][part] = _mm512_fmadd_ps(weight, value[part], sums[head][part]);
    }
  }
  for (int head = 0; head < HEADS; ++head)
    for (int part = 0; part < PARTS; ++part)
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(out + head * width + part * LANES),
          narrowed(_mm512_div_ps(sums[head][part], _mm512_set1_ps(totals[head]))));
}

// All of a width, for a number of heads that is known only now.
template <int HEADS>
void gather_all(
    int64_t heads, const half* values, int64_t width, int64_t count, const float* weights, int64_t stride,
    const float* totals, const half* ahead, half* out) {
  if constexpr (HEADS > 1)
    if (heads < HEADS) return gather_all<HEADS - 1>(heads, values, width, count, weights, stride, totals, ahead, out);
  int64_t at = 0;
  for (; at + 2 * HALVES <= width; at += 2 * HALVES)
    gather<HEADS, 4>(values + at, width, count, weights, stride, totals, ahead ? ahead + at : nullptr, out + at);
  if (at < width)
    gather<HEADS, 2>(values + at, width, count, weights, stride, totals, ahead ? ahead + at : nullptr, out + at);
}

// The heads that share one slot's keys and values (position, width). out: (group, width), heads one after the other. Slots
// are too short for the processor to guess what comes, so values are fetched beside the keys, and the keys that are next
// (`following`) beside the values.
void attend_group(
    const Rows& queries, int64_t row, int64_t head, int64_t group, const half* keys, const half* values,
    const half* following, half* out, int64_t width, int64_t position, const Terms& terms) {
  thread_local std::vector<float> scratch;
  const int64_t first = terms.first_seen(position), count = position + 1 - first;
  const int64_t stride = (count + LANES - 1) / LANES * LANES;
  scratch.resize(group * (stride + 1));
  float* totals = scratch.data() + group * stride;
  for (int64_t i = 0; i < group; ++i) {
    float* scores = scratch.data() + i * stride;
    const half* ahead = i == 0 ? values + first * width : nullptr;
    const float highest = score(queries(row, head + i), keys + first * width, width, count, terms, ahead, scores);
    totals[i] = weigh(scores, count, highest);
  }
  for (int64_t i = 0; i < group; i += MOST_HEADS)
    gather_all<MOST_HEADS>(
        group - i, values + first * width, width, count, scratch.data() + i * stride, stride, totals + i,
        i == 0 ? following : nullptr, out + i * width);
}

// query, key, value (row, head, token, width); keys, values (slot, kv_head, position, width).
void check(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& keys,
    const at::Tensor& values) {
  for (const at::Tensor& given : {query, key, value, keys, values})
    TORCH_CHECK(given.dim() == 4 && given.scalar_type() == at::kBFloat16, "four dimensions of bfloat16");
  const int64_t width = query.size(3), shared = keys.size(1);
  TORCH_CHECK(keys.is_contiguous() && values.is_contiguous(), "slots lie together");
  for (const at::Tensor& given : {key, value, keys, values})
    TORCH_CHECK(width % HALVES == 0 && given.size(3) == width, "heads of a width of 32, 64, ...");
  TORCH_CHECK(
      query.size(1) % shared == 0 && key.size(1) == shared && value.size(1) == shared && values.sizes() == keys.sizes(),
      "heads in groups of one size, each with its own key and value");
  TORCH_CHECK(key.size(2) == query.size(2) && value.size(2) == query.size(2), "a key and a value for every token");
}

}  // namespace

at::Tensor steering::attend_rows(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& positions, double scaling, std::optional<int64_t> window, std::optional<double> softcap) {
  check(query, key, value, keys, values);
  const int64_t rows = query.size(0), heads = query.size(1), width = query.size(3);
  const int64_t shared = keys.size(1), capacity = keys.size(2), group = heads / shared;
  TORCH_CHECK(query.size(2) == 1 && rows <= keys.size(0), "one token a row, a slot a row");
  const auto asked = together(query), new_key = together(key), new_value = together(value), at = positions.contiguous();
  auto out = at::empty({rows, 1, heads, width}, query.options());
  const Terms terms{static_cast<float>(scaling), window, softcap};
  const Rows queries = rows_of(asked, 0, 1), key_rows = rows_of(new_key, 0, 1), value_rows = rows_of(new_value, 0, 1);
  const int64_t* places = at.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row)
    TORCH_CHECK(places[row] >= 0 && places[row] < capacity, "position ", places[row], " of ", capacity);
  half *all_keys = reinterpret_cast<half*>(keys.mutable_data_ptr()),
       *all_values = reinterpret_cast<half*>(values.mutable_data_ptr()),
       *answers = reinterpret_cast<half*>(out.mutable_data_ptr());
  const int64_t items = rows * shared, threads = std::min<int64_t>(at::get_num_threads(), items);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t item = next++, following = next++; item < items; item = following, following = next++) {
      const int64_t row = item / shared, head = item % shared, position = places[row], slot = item * capacity * width;
      const half* to_come = nullptr;
      if (following < items) to_come = all_keys + (following * capacity + terms.first_seen(places[following / shared])) * width;
      std::copy_n(key_rows(row, head), width, all_keys + slot + position * width);
      std::copy_n(value_rows(row, head), width, all_values + slot + position * width);
      attend_group(
          queries, row, head * group, group, all_keys + slot, all_values + slot, to_come, answers + item * group * width,
          width, position, terms);
    }
  });
  return out;
}

// ---- pieces of prompts

namespace {

// Sixteen rows of sixteen pairs, turned: pair p of row r becomes element r of row p.
void turn(const half* const (&rows)[16], half* out, int64_t stride) {
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
  for (int i = 0; i < 4; ++i) {  // column i of every lane, from the four groups of rows
    const __m512i low = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0x88), odd = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0xdd);
    const __m512i last = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0x88),
                  last_odd = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0xdd);
    _mm512_storeu_si512(out + i * stride, _mm512_shuffle_i32x4(low, last, 0x88));
    _mm512_storeu_si512(out + (4 + i) * stride, _mm512_shuffle_i32x4(odd, last_odd, 0x88));
    _mm512_storeu_si512(out + (8 + i) * stride, _mm512_shuffle_i32x4(low, last, 0xdd));
    _mm512_storeu_si512(out + (12 + i) * stride, _mm512_shuffle_i32x4(odd, last_odd, 0xdd));
  }
}

// Keys (position, width) of `count` positions as panels of KEY_WIDTH; positions behind the last repeat it.
void pack_keys(const half* keys, int64_t width, int64_t count, half* panels) {
  for (int64_t start = 0; start < count; start += LANES) {
    half* panel = panels + start / KEY_WIDTH * width * KEY_WIDTH + start % KEY_WIDTH * 2;
    for (int64_t at = 0; at < width; at += HALVES) {
      const half* rows[16];
      for (int i = 0; i < 16; ++i) rows[i] = keys + std::min(start + i, count - 1) * width + at;
      turn(rows, panel + at / 2 * KEY_WIDTH * 2, KEY_WIDTH * 2);
    }
  }
}

// Values (position, width) of `count` positions as panels of VALUE_WIDTH columns; behind the last are zeros.
void pack_values(const half* values, int64_t width, int64_t count, half* panels) {
  const int64_t pairs = (count + 1) / 2;
  for (int64_t pair = 0; pair < pairs; ++pair)
    for (int64_t column = 0; column < width; column += VALUE_WIDTH) {
      const half* value = values + 2 * pair * width + column;
      const auto wide = [](const half* from) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      };
      half* to = panels + column * 2 * pairs + pair * VALUE_WIDTH * 2;
      for (int part = 0; part < VALUE_VECTORS; ++part) {
        __m512i both = wide(value + part * LANES);
        if (2 * pair + 1 < count) both = _mm512_or_si512(both, _mm512_slli_epi32(wide(value + width + part * LANES), 16));
        _mm512_storeu_si512(to + part * HALVES, both);
      }
    }
}

// The rows of one block of questions: tokens of a segment, times the heads of one key, and what they have found so far.
struct Questions {
  int64_t tokens, group, width, first_position;
  std::vector<half> asked, weights, keys, values;
  std::vector<float> scores, found, highest, totals;

  int64_t rows() const { return tokens * group; }
  int64_t position(int64_t row) const { return first_position + row / group; }

  void begin(int64_t tokens_, int64_t group_, int64_t width_, int64_t first_position_) {
    tokens = tokens_, group = group_, width = width_, first_position = first_position_;
    asked.resize(rows() * width);
    weights.resize(rows() * POSITIONS);
    keys.resize(POSITIONS * width);
    values.resize(POSITIONS * width);
    scores.resize(rows() * POSITIONS);
    found.assign(rows() * width, 0.0f);
    highest.assign(rows(), -INFINITY);
    totals.assign(rows(), 0.0f);
  }

  // Scores of `count` positions.
  void ask(int64_t count) {
    Ahead nothing;
    for (int64_t start = 0; start < count; start += KEY_WIDTH)
      in_tiles(rows(), [&](int64_t row, int64_t many) {
        tile_of<KEY_VECTORS>(
            many, asked.data() + row * width, width, keys.data() + start * width, width / 2, nothing,
            [](int, int) { return _mm512_setzero_ps(); },
            [&](int at, int vector, __m512 sums) {
              _mm512_storeu_ps(scores.data() + (row + at) * POSITIONS + start + vector * LANES, sums);
            });
      });
  }

  // One row's scores become weights; what it found before is made to fit a new highest score.
  void weigh_row(int64_t row, int64_t start, int64_t count, const Terms& terms) {
    half* out = weights.data() + row * POSITIONS;
    float* numbers = scores.data() + row * POSITIONS;
    const int64_t seen = std::clamp<int64_t>(terms.first_seen(position(row)) - start, 0, count);
    const int64_t end = std::clamp<int64_t>(position(row) + 1 - start, 0, count);
    const int64_t padded = count + count % 2;
    if (seen >= end) {
      std::fill_n(out, padded, half{0});
      return;
    }
    const auto inside = [&](int64_t at) { return static_cast<__mmask16>(lanes(end - at) & ~lanes(seen - at)); };
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int64_t at = 0; at < end; at += LANES) {
      const __m512 bent = terms.of(_mm512_loadu_ps(numbers + at));
      _mm512_storeu_ps(numbers + at, bent);
      top = _mm512_mask_max_ps(top, inside(at), top, bent);
    }
    const float before = highest[row], now = std::max(before, _mm512_reduce_max_ps(top));
    __m512 total = _mm512_setzero_ps();
    for (int64_t at = 0; at < padded; at += LANES) {
      __m512 share = _mm512_setzero_ps();
      if (at < end) {
        share = exponential(_mm512_sub_ps(_mm512_loadu_ps(numbers + at), _mm512_set1_ps(now)));
        share = _mm512_maskz_mov_ps(inside(at), share);
        total = _mm512_add_ps(total, share);
      }
      _mm256_mask_storeu_epi16(out + at, lanes(padded - at), narrowed(share));
    }
    highest[row] = now;
    if (now == before) {
      totals[row] += _mm512_reduce_add_ps(total);
      return;
    }
    const float fade = before == -INFINITY ? 0.0f : std::exp(before - now);
    totals[row] = totals[row] * fade + _mm512_reduce_add_ps(total);
    float* sums = found.data() + row * width;
    for (int64_t at = 0; at < width; at += LANES)
      _mm512_storeu_ps(sums + at, _mm512_mul_ps(_mm512_loadu_ps(sums + at), _mm512_set1_ps(fade)));
  }

  // Adds the values of `count` positions by their weights.
  void gather_values(int64_t count) {
    Ahead nothing;
    const int64_t pairs = (count + 1) / 2;
    for (int64_t column = 0; column < width; column += VALUE_WIDTH)
      in_tiles(rows(), [&](int64_t row, int64_t many) {
        float* sums = found.data() + row * width + column;
        tile_of<VALUE_VECTORS>(
            many, weights.data() + row * POSITIONS, POSITIONS, values.data() + column * 2 * pairs, pairs, nothing,
            [&](int at, int vector) { return _mm512_loadu_ps(sums + at * width + vector * LANES); },
            [&](int at, int vector, __m512 now) { _mm512_storeu_ps(sums + at * width + vector * LANES, now); });
      });
  }

  // All they may see of one slot's keys and values (position, width).
  void see(const half* slot_keys, const half* slot_values, const Terms& terms) {
    const int64_t last = first_position + tokens;
    for (int64_t start = terms.first_seen(first_position) / POSITIONS * POSITIONS; start < last; start += POSITIONS) {
      const int64_t count = std::min(POSITIONS, last - start);
      pack_keys(slot_keys + start * width, width, count, keys.data());
      ask(count);
      for (int64_t row = 0; row < rows(); ++row) weigh_row(row, start, count, terms);
      pack_values(slot_values + start * width, width, count, values.data());
      gather_values(count);
    }
  }
};

// A piece of a prompt: `tokens` tokens of the pass from the `first`, in a slot, the first of them at a position.
struct Segment {
  int64_t first, tokens, slot, position;
};

// Keys and values of a pass go to their slots; then those that are lent, which others computed in it: (borrower, lender,
// position) each.
void write(
    const Rows& rows, half* states, int64_t shared, int64_t capacity, int64_t width, const std::vector<Segment>& segments,
    const int64_t* loans, int64_t loan_count) {
  at::parallel_for(0, shared, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      const auto place = [&](int64_t slot, int64_t position) {
        return states + ((slot * shared + head) * capacity + position) * width;
      };
      for (const Segment& segment : segments)
        for (int64_t token = 0; token < segment.tokens; ++token)
          std::copy_n(rows(segment.first + token, head), width, place(segment.slot, segment.position + token));
      for (int64_t loan = 0; loan < loan_count; ++loan) {
        const int64_t* entry = loans + 3 * loan;
        std::copy_n(place(entry[1], entry[2]), width, place(entry[0], entry[2]));
      }
    }
  });
}

// Blocks of questions of all segments, the longest first, so that no thread is left with one at the end.
struct Block {
  Segment piece;
  int64_t head;
};

std::vector<Block> blocks_of(const std::vector<Segment>& segments, int64_t shared, int64_t together) {
  std::vector<Block> blocks;
  for (const Segment& segment : segments)
    for (int64_t from = 0; from < segment.tokens; from += together)
      for (int64_t head = 0; head < shared; ++head)
        blocks.push_back(
            {{segment.first + from, std::min(together, segment.tokens - from), segment.slot, segment.position + from}, head});
  std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) {
    return a.piece.position > b.piece.position;
  });
  return blocks;
}

// What the questions of one block find; `answers` (token, head, width).
void answer(
    const Block& block, const Rows& queries, int64_t heads, int64_t group, int64_t width, const half* keys,
    const half* values, const Terms& terms, half* answers) {
  thread_local Questions questions;
  questions.begin(block.piece.tokens, group, width, block.piece.position);
  for (int64_t row = 0; row < questions.rows(); ++row)
    std::copy_n(
        queries(block.piece.first + row / group, block.head * group + row % group), width,
        questions.asked.data() + row * width);
  questions.see(keys, values, terms);
  for (int64_t row = 0; row < questions.rows(); ++row) {
    half* to = answers + ((block.piece.first + row / group) * heads + block.head * group + row % group) * width;
    const __m512 share = _mm512_set1_ps(1.0f / questions.totals[row]);
    for (int64_t at = 0; at < width; at += LANES)
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(to + at),
          narrowed(_mm512_mul_ps(_mm512_loadu_ps(questions.found.data() + row * width + at), share)));
  }
}

}  // namespace

at::Tensor steering::attend_segments(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& segments, const at::Tensor& loans, double scaling, std::optional<int64_t> window,
    std::optional<double> softcap) {
  check(query, key, value, keys, values);
  const int64_t heads = query.size(1), width = query.size(3), shared = keys.size(1), capacity = keys.size(2);
  const auto asked = together(query), new_key = together(key), new_value = together(value);
  const auto table = segments.contiguous(), lent = loans.contiguous();
  const int64_t* entries = table.const_data_ptr<int64_t>();
  std::vector<Segment> pieces;
  for (const int64_t* entry = entries; entry < entries + table.numel(); entry += 4) {
    const Segment piece{entry[0], entry[1], entry[2], entry[3]};
    TORCH_CHECK(
        piece.first >= 0 && piece.first + piece.tokens <= query.size(2) && piece.slot >= 0 && piece.slot < keys.size(0) &&
            piece.position >= 0 && piece.position + piece.tokens <= capacity,
        "a segment beyond the tokens or the slots");
    pieces.push_back(piece);
  }
  half *all_keys = reinterpret_cast<half*>(keys.mutable_data_ptr()),
       *all_values = reinterpret_cast<half*>(values.mutable_data_ptr());
  const int64_t* loan_table = lent.const_data_ptr<int64_t>();
  write(rows_of(new_key, 2, 1), all_keys, shared, capacity, width, pieces, loan_table, lent.size(0));
  write(rows_of(new_value, 2, 1), all_values, shared, capacity, width, pieces, loan_table, lent.size(0));
  auto out = at::empty({1, query.size(2), heads, width}, query.options());
  auto* answers = reinterpret_cast<half*>(out.mutable_data_ptr());
  const Terms terms{static_cast<float>(scaling), window, softcap};
  const Rows queries = rows_of(asked, 2, 1);
  const int64_t group = heads / shared;
  const auto blocks = blocks_of(pieces, shared, std::max<int64_t>(1, QUESTIONS / group));
  const int64_t count = blocks.size(), threads = std::min<int64_t>(at::get_num_threads(), count);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t index = next++; index < count; index = next++) {
      const Block& block = blocks[index];
      const int64_t slot = (block.piece.slot * shared + block.head) * capacity * width;
      answer(block, queries, heads, group, width, all_keys + slot, all_values + slot, terms, answers);
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(steering, CPU, library) {
  library.impl("attend_rows", &steering::attend_rows);
  library.impl("attend_segments", &steering::attend_segments);
}

extern "C" {

AOTITorchError aoti_torch_cpu_attend_rows(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle keys, AtenTensorHandle values,
    AtenTensorHandle positions, double scaling, const int64_t* window, const double* softcap, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(steering::attend_rows(
        steering::tensor(query), steering::tensor(key), steering::tensor(value), steering::tensor(keys), steering::tensor(values), steering::tensor(positions), scaling, steering::given(window),
        steering::given(softcap)));
  });
}

AOTITorchError aoti_torch_cpu_attend_segments(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle keys, AtenTensorHandle values,
    AtenTensorHandle segments, AtenTensorHandle loans, double scaling, const int64_t* window, const double* softcap,
    AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(steering::attend_segments(
        steering::tensor(query), steering::tensor(key), steering::tensor(value), steering::tensor(keys), steering::tensor(values), steering::tensor(segments), steering::tensor(loans), scaling,
        steering::given(window), steering::given(softcap)));
  });
}
}

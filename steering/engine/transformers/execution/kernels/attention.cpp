// Attention over a paged key-value cache: the tokens of several sequences (segments), one after another, each against the
// cached positions of its own sequence up to itself. A decoding sequence is a segment of one token. Used in bfloat16 with
// head widths that are a multiple of 32.
//
// Algorithm: the pass's keys and values are written to their blocks, then tiles of queries run online softmax
// (query_tile.h). Threads take tiles from a shared counter, those with the most positions first, so that no thread is left
// with a long one at the end.
#include "aoti_shim.h"
#include "attention_amx.h"
#include "attention_avx512.h"
#include "operations.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <vector>

namespace {

using namespace steering;

constexpr int64_t TILE_ROWS = 192;  // rows of a query tile: tokens times query heads of one key-value head

// `tokens` tokens of the pass from the `first`, the first of them at `position` of the sequence with these `blocks`.
struct Segment {
  int64_t first, tokens, position;
  const int64_t* blocks;
};

std::vector<Segment> parse_segments(
    const at::Tensor& table, const at::Tensor& block_tables, int64_t tokens, int64_t block_count) {
  TORCH_CHECK(
      table.dim() == 2 && table.size(1) == 3 && block_tables.dim() == 2 && block_tables.size(0) == table.size(0),
      "paged_attention: expected segments (segment, 3) and block tables (segment, block)");
  std::vector<Segment> segments;
  const int64_t* entry = table.const_data_ptr<int64_t>();
  const int64_t* blocks = block_tables.const_data_ptr<int64_t>();
  const int64_t length = block_tables.size(1);
  for (int64_t index = 0; index < table.size(0); ++index, entry += 3, blocks += length) {
    const Segment segment{entry[0], entry[1], entry[2], blocks};
    TORCH_CHECK(
        segment.first >= 0 && segment.tokens >= 0 && segment.first + segment.tokens <= tokens && segment.position >= 0 &&
            segment.position + segment.tokens <= length * BLOCK,
        "paged_attention: a segment exceeds the tokens or its block table");
    for (int64_t block = 0; block < length; ++block)
      TORCH_CHECK(blocks[block] >= 0 && blocks[block] < block_count, "paged_attention: block ", blocks[block], " of ", block_count);
    segments.push_back(segment);
  }
  return segments;
}

// Transposes sixteen rows of sixteen pairs: pair p of row r becomes element r of row p.
void transpose_pairs(const bf16* const (&rows)[16], bf16* out) {
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
}

// Writes the keys of a segment for one head: whole blocks by transposition, other positions pair by pair.
void write_keys(const HeadRows& keys, int64_t head, const Segment& segment, bf16* states, int64_t width) {
  for (int64_t token = 0; token < segment.tokens;) {
    const int64_t position = segment.position + token, offset = position % BLOCK;
    bf16* block = states + segment.blocks[position / BLOCK] * BLOCK * width;
    if (offset == 0 && token + BLOCK <= segment.tokens) {
      for (int64_t at = 0; at < width; at += BF16_LANES) {
        const bf16* rows[16];
        for (int64_t i = 0; i < BLOCK; ++i) rows[i] = keys(segment.first + token + i, head) + at;
        transpose_pairs(rows, block + at * BLOCK);
      }
      token += BLOCK;
      continue;
    }
    const bf16* key = keys(segment.first + token, head);
    for (int64_t at = 0; at < width; at += 2) std::memcpy(block + at * BLOCK + 2 * offset, key + at, 2 * sizeof(bf16));
    ++token;
  }
}

// Writes the values of a segment for one head, each into every other number of its pair's row.
void write_values(const HeadRows& values, int64_t head, const Segment& segment, bf16* states, int64_t width) {
  for (int64_t token = 0; token < segment.tokens; ++token) {
    const int64_t position = segment.position + token, offset = position % BLOCK;
    bf16* row = states + (segment.blocks[position / BLOCK] * BLOCK + offset / 2 * 2) * width;
    const bf16* value = values(segment.first + token, head);
    const __mmask32 places = offset % 2 ? 0xaaaaaaaa : 0x55555555;
    for (int64_t at = 0; at < width; at += LANES) {
      __m512i numbers = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(value + at)));
      if (offset % 2) numbers = _mm512_slli_epi32(numbers, 16);
      _mm512_mask_storeu_epi16(row + 2 * at, places, numbers);
    }
  }
}

// Some tokens of a segment, for one head.
struct Tile {
  Segment part;
  int64_t kv_head;
};

std::vector<Tile> make_tiles(const std::vector<Segment>& segments, int64_t kv_heads, int64_t tile_tokens) {
  std::vector<Tile> tiles;
  for (const Segment& segment : segments)
    for (int64_t from = 0; from < segment.tokens; from += tile_tokens)
      for (int64_t head = 0; head < kv_heads; ++head)
        tiles.push_back(
            {{segment.first + from, std::min(tile_tokens, segment.tokens - from), segment.position + from, segment.blocks},
             head});
  const auto cost = [](const Tile& tile) { return (tile.part.position + tile.part.tokens) * tile.part.tokens; };
  std::stable_sort(tiles.begin(), tiles.end(), [&](const Tile& a, const Tile& b) { return cost(a) > cost(b); });
  return tiles;
}

// Attends to all visible positions of one sequence.
void attend(QueryTile& tile, const BlockTable& keys, const BlockTable& values, const ScoreOptions& options) {
  const int64_t last = tile.first_position + tile.tokens;
  for (int64_t start = options.first_visible(tile.first_position) / POSITIONS * POSITIONS; start < last; start += POSITIONS) {
    const int64_t first = start / BLOCK, count = (std::min(POSITIONS, last - start) + BLOCK - 1) / BLOCK;
    compute_scores(tile, keys, values, first, count);
    for (int64_t row = 0; row < tile.rows(); ++row) tile.softmax_row(row, start, count * BLOCK, options);
    accumulate_values(tile, values, first, count);
  }
}

// Computes one tile; out (token, head, width).
void run_tile(
    const Tile& tile, const HeadRows& queries, int64_t heads, int64_t group, int64_t width, const bf16* keys,
    const bf16* values, const ScoreOptions& options, bf16* out) {
  thread_local QueryTile state;
  state.reset(tile.part.tokens, group, width, tile.part.position);
  for (int64_t row = 0; row < state.rows(); ++row)
    std::copy_n(
        queries(tile.part.first + row / group, tile.kv_head * group + row % group), width, state.queries.data() + row * width);
  const BlockTable key_blocks{keys, tile.part.blocks, BLOCK * width}, value_blocks{values, tile.part.blocks, BLOCK * width};
  attend(state, key_blocks, value_blocks, options);
  for (int64_t row = 0; row < state.rows(); ++row)
    state.store_row(row, out + ((tile.part.first + row / group) * heads + tile.kv_head * group + row % group) * width);
}

void check_arguments(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& keys,
    const at::Tensor& values) {
  for (const at::Tensor& tensor : {query, key, value})
    TORCH_CHECK(
        tensor.dim() == 4 && tensor.size(0) == 1 && tensor.scalar_type() == at::kBFloat16,
        "paged_attention: expected states (1, head, token, width) in bfloat16");
  for (const at::Tensor& tensor : {keys, values})
    TORCH_CHECK(
        tensor.dim() == 3 && tensor.is_contiguous() && tensor.scalar_type() == at::kBFloat16 && tensor.size(1) % BLOCK == 0,
        "paged_attention: expected a contiguous cache (kv_head, slot, width) in bfloat16");
  const int64_t width = query.size(3), kv_heads = keys.size(0);
  TORCH_CHECK(
      width % BF16_LANES == 0 && key.size(3) == width && value.size(3) == width && keys.size(2) == width,
      "paged_attention: head widths must be equal multiples of ", BF16_LANES);
  TORCH_CHECK(
      query.size(1) % kv_heads == 0 && key.size(1) == kv_heads && value.size(1) == kv_heads &&
          values.sizes() == keys.sizes(),
      "paged_attention: query heads must be a multiple of the key-value heads");
  TORCH_CHECK(
      key.size(2) == query.size(2) && value.size(2) == query.size(2), "paged_attention: expected a key and a value per token");
}

}  // namespace

at::Tensor steering::paged_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& segments, const at::Tensor& block_tables, double scaling, std::optional<int64_t> window,
    std::optional<double> softcap) {
  check_arguments(query, key, value, keys, values);
  const int64_t heads = query.size(1), width = query.size(3), kv_heads = keys.size(0), head_size = keys.size(1) * width;
  const auto new_query = contiguous_heads(query), new_key = contiguous_heads(key), new_value = contiguous_heads(value);
  const auto table = segments.contiguous(), blocks = block_tables.contiguous();
  const auto parts = parse_segments(table, blocks, query.size(2), keys.size(1) / BLOCK);
  auto* all_keys = reinterpret_cast<bf16*>(keys.mutable_data_ptr());
  auto* all_values = reinterpret_cast<bf16*>(values.mutable_data_ptr());
  const HeadRows query_rows = head_rows(new_query, 2, 1), key_rows = head_rows(new_key, 2, 1),
                 value_rows = head_rows(new_value, 2, 1);
  at::parallel_for(0, kv_heads, query.size(2) < 64 ? kv_heads : 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      for (const Segment& part : parts) {
        write_keys(key_rows, head, part, all_keys + head * head_size, width);
        write_values(value_rows, head, part, all_values + head * head_size, width);
      }
  });
  auto out = at::empty({1, query.size(2), heads, width}, query.options());
  auto* result = reinterpret_cast<bf16*>(out.mutable_data_ptr());
  const ScoreOptions options{static_cast<float>(scaling), window, softcap};
  const int64_t group = heads / kv_heads;
  const auto tiles = make_tiles(parts, kv_heads, std::max<int64_t>(1, TILE_ROWS / group));
  const int64_t count = tiles.size(), threads = std::min<int64_t>(at::get_num_threads(), count);
  std::atomic<int64_t> counter{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t index = counter++; index < count; index = counter++) {
      const int64_t head = tiles[index].kv_head * head_size;
      run_tile(tiles[index], query_rows, heads, group, width, all_keys + head, all_values + head, options, result);
    }
#ifdef __AMX_BF16__
    _tile_release();
#endif
  });
  return out;
}

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("paged_attention", &steering::paged_attention); }

extern "C" AOTITorchError aoti_torch_cpu_paged_attention(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle keys, AtenTensorHandle values,
    AtenTensorHandle segments, AtenTensorHandle block_tables, double scaling, const int64_t* window, const double* softcap,
    AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = steering::handle(steering::paged_attention(
        steering::tensor(query), steering::tensor(key), steering::tensor(value), steering::tensor(keys),
        steering::tensor(values), steering::tensor(segments), steering::tensor(block_tables), scaling,
        steering::optional(window), steering::optional(softcap)));
  });
}

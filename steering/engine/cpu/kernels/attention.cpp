// Attention over a paged key-value cache: the tokens of several sequences (segments), one after another, each against the
// cached positions of its own sequence up to itself. A decoding sequence is a segment of one token. Used in bfloat16 with
// head widths that are a multiple of 32.
//
// Algorithm: the pass's keys and values are written to their blocks, those of segments that fill no block by the tiles that
// read them, and tiles of queries run online softmax (query_tile.h). Threads take tiles from a shared counter, long ones
// first where some are long, so that no thread is left with one at the end.
#include "attention_tiles.h"
#include "attention_vectors.h"
#include "cache_write.h"
#include "operations.h"
#include "team.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

namespace {

using namespace steering;

constexpr int64_t QUERY_ROWS = 192;    // rows of a query tile: tokens times query heads of one key-value head
constexpr int64_t SMALL_TILES = 8;     // where every thread has work for that many of the largest tile, they need no order
constexpr int64_t WRITE_TOKENS = 128;  // tokens whose keys and values are written as one piece of work, a multiple of BLOCK

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

// Some tokens of a segment, for one head. writes: its thread writes their keys and values, so that they are in its cache. Else
// they were written before.
struct Tile {
  Segment part;
  int64_t kv_head;
  bool writes;
};

std::vector<Tile> make_tiles(const std::vector<Segment>& segments, int64_t kv_heads, int64_t tile_tokens) {
  std::vector<Tile> tiles;
  for (const Segment& segment : segments)
    for (int64_t from = 0; from < segment.tokens; from += tile_tokens)
      for (int64_t head = 0; head < kv_heads; ++head)
        tiles.push_back(
            {segment.part(from, std::min(tile_tokens, segment.tokens - from)), head, segment.written_by_its_tile(tile_tokens)});
  const auto cost = [](const Tile& tile) { return (tile.part.position + tile.part.tokens) * tile.part.tokens; };
  int64_t total = 0, largest = 0;
  for (const Tile& tile : tiles) total += cost(tile), largest = std::max(largest, cost(tile));
  if (SMALL_TILES * thread_count() * largest <= total) return tiles;
  std::sort(tiles.begin(), tiles.end(), [&](const Tile& a, const Tile& b) { return cost(a) > cost(b); });
  return tiles;
}

// Attends to all visible positions of one sequence.
template <class Multiply>
void attend_by(QueryTile& tile, const BlockTable& keys, const BlockTable& values, const ScoreOptions& options) {
  const int64_t last = tile.first_position + tile.tokens;
  for (int64_t start = options.first_visible(tile.first_position) / POSITIONS * POSITIONS; start < last; start += POSITIONS) {
    const int64_t first = start / BLOCK;
    for (int64_t from = 0; from < tile.rows(); from += PART_ROWS) {
      QueryRows rows = tile.part(from);
      const int64_t seen = std::min(POSITIONS, rows.position(rows.count - 1) + 1 - start), count = (seen + BLOCK - 1) / BLOCK;
      if (seen <= 0) continue;
      Multiply::compute_scores(rows, keys, values, first, count);
      rows.softmax(start, count * BLOCK, options);
      Multiply::accumulate_values(rows, values, first, count);
    }
  }
}

void attend(QueryTile& tile, const BlockTable& keys, const BlockTable& values, const ScoreOptions& options) {
  if constexpr (std::is_same_v<Left, bf16>)
    if (products == Products::EMULATED) return attend_by<TileProducts<EmulatedTiles>>(tile, keys, values, options);
#ifdef __AMX_BF16__
  attend_by<TileProducts<AmxTiles>>(tile, keys, values, options);
#else
  attend_by<VectorProducts>(tile, keys, values, options);
#endif
}

// Writes the keys and values that no tile writes.
void write_ahead(const States& states, const std::vector<Segment>& segments, int64_t kv_heads, int64_t tile_tokens) {
  std::vector<Segment> parts;
  int64_t tokens = 0;
  for (const Segment& segment : segments) {
    if (segment.written_by_its_tile(tile_tokens)) continue;
    tokens += segment.tokens;
    for (int64_t from = 0; from < segment.tokens;) {  // parts end where blocks end: threads share no block
      const int64_t count = std::min(segment.tokens - from, WRITE_TOKENS - (segment.position + from) % BLOCK);
      parts.push_back(segment.part(from, count));
      from += count;
    }
  }
  if (parts.empty()) return;
  const int64_t pieces = parts.size() * kv_heads;
  steering::parallel_for(0, pieces, tokens < 16 ? pieces : 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) write_states(states, piece % kv_heads, parts[piece / kv_heads]);
  });
}

// Computes one tile; out (token, head, width).
void run_tile(
    const Tile& tile, const HeadRows& queries, int64_t heads, int64_t group, const States& states,
    const ScoreOptions& options, bf16* out) {
  if (tile.writes) write_states(states, tile.kv_head, tile.part);
  const int64_t width = states.width, offset = tile.kv_head * states.head_size;
  thread_local QueryTile state;
  state.reset(tile.part.tokens, group, width, tile.part.position);
  for (int64_t row = 0; row < state.rows(); ++row) {
    const int64_t token = tile.part.first + row / group;
    const bf16* query = queries(token, tile.kv_head * group + row % group);
    Left* to = state.queries + row * width;
    if (states.rotation) states.rotation.apply(query, token, width, to);
    else
      for (int64_t at = 0; at < width; at += LANES) copy_lanes(to + at, query + at);
  }
  const BlockTable keys{states.cached_keys + offset, tile.part.blocks, BLOCK * width},
      values{states.cached_values + offset, tile.part.blocks, BLOCK * width};
  attend(state, keys, values, options);
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

at::Tensor paged_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& segments, const at::Tensor& block_tables, double scaling, std::optional<int64_t> window,
    std::optional<double> softcap, const std::optional<at::Tensor>& cosines, const std::optional<at::Tensor>& sines) {
  check_arguments(query, key, value, keys, values);
  const int64_t heads = query.size(1), width = query.size(3), kv_heads = keys.size(0), head_size = keys.size(1) * width;
  const auto new_query = contiguous_heads(query), new_key = contiguous_heads(key), new_value = contiguous_heads(value);
  const auto table = segments.contiguous(), blocks = block_tables.contiguous();
  const auto parts = parse_segments(table, blocks, query.size(2), keys.size(1) / BLOCK);
  const auto new_cosines = contiguous(cosines), new_sines = contiguous(sines);
  const States states{
      HeadRows(new_key), HeadRows(new_value), rotation(new_cosines, new_sines, query.size(2), width),
      mutable_bf16_data(keys), mutable_bf16_data(values), head_size, width};
  const int64_t group = heads / kv_heads, tile_tokens = std::max<int64_t>(1, QUERY_ROWS / group);
  write_ahead(states, parts, kv_heads, tile_tokens);
  auto out = at::empty({1, query.size(2), heads, width}, query.options());
  bf16* result = mutable_bf16_data(out);
  const HeadRows queries(new_query);
  const ScoreOptions options{static_cast<float>(scaling), window, softcap};
  const auto tiles = make_tiles(parts, kv_heads, tile_tokens);
  const int64_t count = tiles.size(), threads = std::min<int64_t>(thread_count(), count);
  std::atomic<int64_t> counter{0};
  steering::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t index = counter++; index < count; index = counter++)
      run_tile(tiles[index], queries, heads, group, states, options, result);
#ifdef __AMX_BF16__
    _tile_release();
#endif
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("paged_attention", &paged_attention); }

extern "C" AOTITorchError aoti_torch_cpu_paged_attention(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle keys, AtenTensorHandle values,
    AtenTensorHandle segments, AtenTensorHandle block_tables, double scaling, const int64_t* window, const double* softcap,
    const AtenTensorHandle* cosines, const AtenTensorHandle* sines, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = handle(paged_attention(
        tensor(query), tensor(key), tensor(value), tensor(keys), tensor(values), tensor(segments), tensor(block_tables),
        scaling, optional(window), optional(softcap), optional_tensor(cosines), optional_tensor(sines)));
  });
}

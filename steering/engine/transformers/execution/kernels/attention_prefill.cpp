// Prefill attention: the tokens of several prompt pieces (segments), packed one after another, each against the cached
// positions of its own slot up to itself. Used for prompt passes in bfloat16 with head widths that are a multiple of 32.
//
// Algorithm: keys and values of the pass are written to the cache, shared prefixes are copied from slot to slot, then
// tiles of queries run online softmax (query_tile.h). Threads take tiles from a shared counter, those with the most
// positions first, so that no thread is left with a long one at the end.
#include "aoti_shim.h"
#include "operations.h"
#include "query_tile.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <vector>

namespace {

using namespace steering;

constexpr int64_t TILE_ROWS = 192;  // rows of a query tile: tokens times query heads of one key-value head

// `tokens` tokens of the pass from the `first`, of one slot, the first of them at `position`.
struct Segment {
  int64_t first, tokens, slot, position;
};

std::vector<Segment> parse_segments(const at::Tensor& table, int64_t tokens, const at::Tensor& keys) {
  std::vector<Segment> segments;
  const int64_t* entries = table.const_data_ptr<int64_t>();
  for (const int64_t* entry = entries; entry < entries + table.numel(); entry += 4) {
    const Segment segment{entry[0], entry[1], entry[2], entry[3]};
    TORCH_CHECK(
        segment.first >= 0 && segment.first + segment.tokens <= tokens && segment.slot >= 0 && segment.slot < keys.size(0) &&
            segment.position >= 0 && segment.position + segment.tokens <= keys.size(2),
        "prefill_attention: a segment exceeds the tokens or the slots");
    segments.push_back(segment);
  }
  return segments;
}

// Writes the states of a pass to their slots, then copies the shared prefixes: (target slot, source slot, position) each.
void write_states(
    const HeadRows& rows, at::Tensor& cache, const std::vector<Segment>& segments, const at::Tensor& prefix_copies) {
  const int64_t kv_heads = cache.size(1), capacity = cache.size(2), width = cache.size(3), copies = prefix_copies.size(0);
  auto* states = reinterpret_cast<bf16*>(cache.mutable_data_ptr());
  const int64_t* entries = prefix_copies.const_data_ptr<int64_t>();
  at::parallel_for(0, kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      const auto state = [&](int64_t slot, int64_t position) {
        return states + ((slot * kv_heads + head) * capacity + position) * width;
      };
      for (const Segment& segment : segments)
        for (int64_t token = 0; token < segment.tokens; ++token)
          std::copy_n(rows(segment.first + token, head), width, state(segment.slot, segment.position + token));
      for (int64_t copy = 0; copy < copies; ++copy) {
        const int64_t* entry = entries + 3 * copy;
        std::copy_n(state(entry[1], entry[2]), width, state(entry[0], entry[2]));
      }
    }
  });
}

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
            {{segment.first + from, std::min(tile_tokens, segment.tokens - from), segment.slot, segment.position + from}, head});
  std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) { return a.part.position > b.part.position; });
  return tiles;
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
  state.attend(keys, values, options);
  for (int64_t row = 0; row < state.rows(); ++row)
    state.store_row(row, out + ((tile.part.first + row / group) * heads + tile.kv_head * group + row % group) * width);
}

}  // namespace

at::Tensor steering::prefill_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& segments, const at::Tensor& prefix_copies, double scaling, std::optional<int64_t> window,
    std::optional<double> softcap) {
  check_attention(query, key, value, keys, values);
  const int64_t heads = query.size(1), width = query.size(3), kv_heads = keys.size(1), capacity = keys.size(2);
  const auto new_query = contiguous_heads(query), new_key = contiguous_heads(key), new_value = contiguous_heads(value);
  const auto parts = parse_segments(segments.contiguous(), query.size(2), keys);
  const auto copies = prefix_copies.contiguous();
  write_states(head_rows(new_key, 2, 1), keys, parts, copies);
  write_states(head_rows(new_value, 2, 1), values, parts, copies);
  auto out = at::empty({1, query.size(2), heads, width}, query.options());
  auto* result = reinterpret_cast<bf16*>(out.mutable_data_ptr());
  const auto* all_keys = reinterpret_cast<const bf16*>(keys.const_data_ptr());
  const auto* all_values = reinterpret_cast<const bf16*>(values.const_data_ptr());
  const ScoreOptions options{static_cast<float>(scaling), window, softcap};
  const HeadRows query_rows = head_rows(new_query, 2, 1);
  const int64_t group = heads / kv_heads;
  const auto tiles = make_tiles(parts, kv_heads, std::max<int64_t>(1, TILE_ROWS / group));
  const int64_t count = tiles.size(), threads = std::min<int64_t>(at::get_num_threads(), count);
  std::atomic<int64_t> counter{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t index = counter++; index < count; index = counter++) {
      const Tile& tile = tiles[index];
      const int64_t slot = (tile.part.slot * kv_heads + tile.kv_head) * capacity * width;
      run_tile(tile, query_rows, heads, group, width, all_keys + slot, all_values + slot, options, result);
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("prefill_attention", &steering::prefill_attention); }

extern "C" AOTITorchError aoti_torch_cpu_prefill_attention(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle keys, AtenTensorHandle values,
    AtenTensorHandle segments, AtenTensorHandle prefix_copies, double scaling, const int64_t* window, const double* softcap,
    AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = steering::handle(steering::prefill_attention(
        steering::tensor(query), steering::tensor(key), steering::tensor(value), steering::tensor(keys),
        steering::tensor(values), steering::tensor(segments), steering::tensor(prefix_copies), scaling,
        steering::optional(window), steering::optional(softcap)));
  });
}

// Linear layers in bfloat16 over packed weights, for every linear layer of a pass: by AMX tiles or in their order (linear_tiles.h), or as
// a register-blocked GEMM (gemm_tile.h).
//
// Data layout: weights are packed once (operations.pack_weight) as column panels, see gemm_tile.h. Each thread owns a
// contiguous range of panels and multiplies all rows by them, in blocks that stay in the L2 cache, while the next panel is
// prefetched from memory: with few rows the time is that of reading the weights. Layers with the same input are one call whose
// panels are shared out together. SwiGLU is one call too, so that gate and up projections are never written to memory. Quantized
// panels (quantized.h) are widened to bfloat16 a few inputs at a time, and multiplied by the same loop while they are in the L1 cache.
#include "gemm_tile.h"
#include "linear_tiles.h"
#include "operations.h"
#include "quantized.h"
#include "team.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace {

using namespace steering;

constexpr int VECTORS = 3;
constexpr int64_t PANEL = VECTORS * LANES;  // columns
constexpr int64_t ROW_BLOCK = 512;          // rows, at most, that are multiplied by all of a thread's panels before the next block

constexpr int64_t WIDENED = 256;            // inputs of a quantized panel that are widened together: 24 KB
using Bytes = std::span<const char>;

// What a call reads of a packed weight: panels of `bytes`, `stride` bytes apart. format: of quantized ones.
struct Weights {
  const char* data;
  int64_t stride, bytes;
  const Format* format = nullptr;

  Bytes panel(int64_t index) const { return {data + index * stride, static_cast<size_t>(bytes)}; }
};

struct Layer {
  Weights weights;
  const float* bias;  // one value for each column of the panels
  bf16* out;          // its first column of the first row
  int64_t columns;

  int64_t panel_count() const { return (columns + PANEL - 1) / PANEL; }
};

// Layers applied to the same rows of `width` values, of which packed weights have a multiple of STEP, padded with zeros; output rows are `stride` values apart. swiglu: two layers, of which
// SiLU(first) * second is written in the place of the first.
struct Call {
  c10::SmallVector<Layer, 3> layers;  // at most query, key and value
  const bf16* left;
  int64_t rows, width, stride;
  bool swiglu = false;

  int64_t padded_width() const { return (width + STEP - 1) / STEP * STEP; }

  int64_t panel_count() const {
    if (swiglu) return layers[0].panel_count();
    int64_t panels = 0;
    for (const Layer& layer : layers) panels += layer.panel_count();
    return panels;
  }
};

struct Panel {
  const Layer* layer;
  int64_t index;

  Bytes weights() const { return layer->weights.panel(index); }
};

// The panel at an index that counts through all layers.
Panel panel_at(const Call& call, int64_t index) {
  const Layer* layer = call.layers.data();
  for (; index >= layer->panel_count(); ++layer) index -= layer->panel_count();
  return {layer, index};
}

// Calls each(input) for 32 inputs after the other, while a share of the next panel is prefetched.
template <class Each>
void for_steps(const Call& call, Bytes next, int64_t begin, int64_t end, const Each& each) {
  const int64_t lines = static_cast<int64_t>(next.size()) / 64;
  for (int64_t input = begin; input < end; input += STEP_INPUTS) {
    for (int64_t line = lines * input / call.width; line < lines * (input + STEP_INPUTS) / call.width; ++line)
      _mm_prefetch(next.data() + 64 * line, _MM_HINT_T1);
    each(input);
  }
}

// Adds the products of a tile, over `pairs` pairs of inputs, to the sums `from` and writes them to `to`, in rows that are `stride` and 48
// values apart. A function of its own: inlined where results are converted and stored, each turn of the loop reads addresses from the
// stack, 11 to 15 of them for 8 rows (GCC 12), here none.
template <int ROWS, int TOGETHER>
[[gnu::noinline]] void multiply_tile(
    const Left* left, int64_t width, const bf16* weights, int64_t pairs, Prefetch& prefetch, const float* from, int64_t stride, float* to) {
  Prefetch own = prefetch;
  gemm_panels<ROWS, TOGETHER>(
      left, width, 1, pairs, 2 * PANEL, [&](int64_t, int vector) { return weights + vector * BF16_LANES; },
      [&](int64_t, int64_t) { own.step(); }, [&](int row, int vector) { return load(from + row * stride + vector * LANES); },
      [&](int row, int vector, Floats sums) { store(to + row * PANEL + vector * LANES, sums); });
  prefetch = own;
}

// Multiplies rows by `panels`, which have `count` inputs of one panel in bfloat16 from the one at `begin` on. partial: sums (row, 48)
// over the inputs before, if there are some, and over these, if there are more. store(row, vector, sums).
template <class Store>
void multiply_dense(
    const Call& call, const Panel& panel, const bf16* panels, int64_t begin, int64_t count, Prefetch prefetch, int64_t remaining,
    const Left* left, int64_t rows, float* partial, const Store& store) {
  const int64_t width = call.width;
  const float* bias = panel.layer->bias + panel.index * PANEL;
  const bool first = begin == 0, last = begin + count == width;
  alignas(64) float results[MAX_ROWS * PANEL];
  dispatch_tiles<MAX_ROWS>(rows, [&]<int ROWS>(int64_t row) {
    constexpr int TOGETHER = vectors_together(ROWS);
    const float* from = first ? bias : partial + row * PANEL;
    float* to = last ? results : partial + row * PANEL;
    for (int column = 0; column < PANEL; column += TOGETHER * LANES) {
      prefetch.lines = std::min(prefetch.lines, remaining);
      remaining -= prefetch.lines;
      multiply_tile<ROWS, TOGETHER>(
          left + row * width + begin, width, panels + 2 * column, count / 2, prefetch, from + column, first ? 0 : PANEL, to + column);
    }
    if (!last) return;
    for (int offset = 0; offset < ROWS; ++offset)
      for (int vector = 0; vector < VECTORS; ++vector)
        store(row + offset, vector, load(results + offset * PANEL + vector * LANES));
  });
}

// Multiplies `rows` rows of `left` by one panel while `next` is prefetched. store(row, vector, sums).
template <class Store>
void multiply(const Call& call, const Panel& panel, Bytes next, const Left* left, int64_t rows, const Store& store) {
  const int64_t width = call.width;
  const Format* format = panel.layer->weights.format;
  if (!format) {
    const int64_t tiles = (rows + MAX_ROWS - 1) / MAX_ROWS, loops = tiles * VECTORS / vectors_together(rows > 1 ? 2 : 1);
    // a panel has at most VECTORS cache lines a pair; the loops over the inputs share them
    const int64_t lines = std::min<int64_t>(VECTORS, (next.size() / 64 + width / 2 - 1) / (width / 2));
    const Prefetch prefetch{next.data(), (lines + loops - 1) / loops};
    const auto* panels = reinterpret_cast<const bf16*>(panel.weights().data());
    return multiply_dense(call, panel, panels, 0, width, prefetch, lines, left, rows, nullptr, store);
  }
  alignas(64) static thread_local std::array<float, ROW_BLOCK * PANEL> scratch;
  float* sums = scratch.data();
  const char* blocks = panel.weights().data();
  if (rows <= MULTIPLIED_ROWS && format->multiply[rows - 1]) {
    for (int64_t row = 0; row < rows; ++row) std::copy_n(panel.layer->bias + panel.index * PANEL, PANEL, sums + row * PANEL);
    const auto multiply_step = format->multiply[rows - 1];
    for_steps(call, next, 0, width, [&](int64_t input) { multiply_step(blocks, input, left, width, sums); });
    for (int64_t row = 0; row < rows; ++row)
      for (int vector = 0; vector < VECTORS; ++vector) store(row, vector, load(sums + row * PANEL + vector * LANES));
    return;
  }
  alignas(64) static thread_local std::array<bf16, WIDENED * PANEL> widened;
  bf16* to = widened.data();
  for (int64_t begin = 0; begin < width; begin += WIDENED) {
    const int64_t end = std::min(begin + WIDENED, width);
    for_steps(call, next, begin, end, [&](int64_t input) {
      format->widen(blocks, input, STEP_INPUTS, to + (input - begin) * PANEL);
    });
    multiply_dense(call, panel, to, begin, end - begin, {}, 0, left, rows, sums, store);
  }
}

// Writes sixteen columns of a row, as many of them as the layer has.
void write(const Call& call, const Panel& panel, int64_t row, int vector, Halves values) {
  const int64_t column = panel.index * PANEL + vector * LANES;
  const int64_t valid = std::clamp<int64_t>(panel.layer->columns - column, 0, LANES);
  bf16* to = panel.layer->out + row * call.stride + column;
  if (valid == LANES) return store_halves(to, values);
  bf16 all[LANES];
  store_halves(all, values);
  std::copy_n(all, valid, to);
}

// SiLU(gate) * up, rounded to bfloat16 wherever a model that computes operation by operation rounds.
Halves silu_times(Floats gate, Floats up) {
  const Floats silu = gate / (broadcast(1.0f) + exponential(zero() - gate));
  return to_bf16(round_to_bf16(silu) * round_to_bf16(up));
}

int64_t level2_cache() {
  static const int64_t bytes = std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), 256 << 10);  // some virtual machines say 0
  return bytes;
}

// How many rows of a width are a block. Widened rows, which each thread has for itself, take three quarters of its L2 cache.
int64_t row_block(int64_t width) {
  if constexpr (std::is_same_v<Left, bf16>) return ROW_BLOCK;
  return std::clamp<int64_t>(level2_cache() * 3 / 4 / (width * int64_t{sizeof(Left)}), 2 * MAX_ROWS, ROW_BLOCK);
}

// The rows as GEMM reads them, valid until this thread's next call.
template <class Number = Left>
const Number* left_operand(const bf16* rows, int64_t count) {
  if constexpr (std::is_same_v<Number, bf16>) {
    return rows;
  } else {
    static thread_local std::vector<Number> widened;  // kept: threads that allocate wait for each other
    widened.resize(std::max<size_t>(widened.size(), count));
    Number* to = widened.data();
    for (int64_t at = 0; at < count; ++at) to[at] = to_float(rows[at]);
    return to;
  }
}

// One panel of a call, or the panels of gate and up projection at the same columns.
void compute(const Call& call, int64_t index, Bytes next, const Left* left, int64_t first, int64_t rows) {
  if (!call.swiglu) {
    const Panel panel = panel_at(call, index);
    multiply(call, panel, next, left, rows, [&](int64_t row, int vector, Floats sums) {
      write(call, panel, first + row, vector, to_bf16(sums));
    });
    return;
  }
  alignas(64) static thread_local std::array<bf16, ROW_BLOCK * PANEL> scratch;
  bf16* gates = scratch.data();  // read once: each access to a thread_local costs a call
  const Panel gate{&call.layers[0], index}, up{&call.layers[1], index};
  const auto gate_at = [gates](int64_t row, int vector) { return gates + row * PANEL + vector * LANES; };
  multiply(call, gate, up.weights(), left, rows, [&](int64_t row, int vector, Floats sums) {
    store_rounded(gate_at(row, vector), sums);
  });
  multiply(call, up, next, left, rows, [&](int64_t row, int vector, Floats sums) {
    write(call, gate, first + row, vector, silu_times(load_float(gate_at(row, vector)), sums));
  });
}

// Panels [begin, end) of a call by the GEMM of pairs. after: prefetched during the last panel.
void run_pairs(const Call& call, int64_t begin, int64_t end, Bytes after) {
  const int64_t most = row_block(call.width), blocks = (call.rows + most - 1) / most;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t row = call.rows * block / blocks, stop = call.rows * (block + 1) / blocks;
    const Left* left = left_operand(call.left + row * call.width, (stop - row) * call.width);
    for (int64_t index = begin; index < end; ++index)
      compute(call, index, index + 1 < end ? panel_at(call, index + 1).weights() : after, left, row, stop - row);
  }
}

// A panel in bfloat16: a quantized one is widened as a whole.
const bf16* whole_panel(const Call& call, const Panel& panel) {
  const char* weights = panel.weights().data();
  const Format* format = panel.layer->weights.format;
  if (!format) return reinterpret_cast<const bf16*>(weights);
  static thread_local std::vector<bf16> widened;  // kept: threads that allocate wait for each other
  widened.resize(std::max<size_t>(widened.size(), call.width * PANEL));
  format->widen(weights, 0, call.width, widened.data());
  return widened.data();
}

// Writes sums (row, 48) of a panel, or SiLU of those of a gate times those of an up projection.
void write_sums(const Call& call, const Panel& panel, int64_t first, int64_t rows, const float* sums, const float* up) {
  for (int64_t row = 0; row < rows; ++row)
    for (int vector = 0; vector < VECTORS; ++vector) {
      const Floats own = load(sums + row * PANEL + vector * LANES);
      write(call, panel, first + row, vector, up ? silu_times(round_to_bf16(own), load(up + row * PANEL + vector * LANES)) : to_bf16(own));
    }
}

// Panels [begin, end) of a call in the order of tiles. Panels in groups that stay in the L2 cache; for each group all rows, some at a
// time, which stay in L1; for these all panels of the group: 1,181 to 1,387 GFLOP/s with AMX and 2,048 rows, where a panel at a time for all
// rows reaches 564 to 910. Meanwhile the next group is prefetched; with few rows the time is that of reading the weights.
template <class Product>
void run_tiles(const Call& call, int64_t begin, int64_t end, Bytes after) {
  alignas(64) static thread_local std::array<float, 2 * MOST_TILE_ROWS * PANEL> scratch;
  float *sums = scratch.data(), *up_sums = sums + MOST_TILE_ROWS * PANEL;
  const int64_t width = call.padded_width(), tiles = (call.rows + MOST_TILE_ROWS - 1) / MOST_TILE_ROWS;
  const int64_t group_bytes = width * PANEL * int64_t{sizeof(bf16)} * (call.swiglu ? 2 : 1);
  const int64_t group = tiles == 1 ? 1 : std::max<int64_t>(1, level2_cache() / 4 / group_bytes);
  Product product(width);
  for (int64_t first = begin; first < end; first += group) {
    const int64_t stop = std::min(first + group, end);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = tile * MOST_TILE_ROWS, rows = std::min(MOST_TILE_ROWS, call.rows - row);
      if (tiles > 1 || first == begin) product.begin(call.left + row * width, width, rows);
      const auto multiply_by = [&](const Panel& panel, Bytes next, float* to) {
        const bf16* weights = whole_panel(call, panel);
        product.multiply(weights, panel.layer->bias + panel.index * PANEL, to, Ahead(next, width / STEP, tile, tiles));
      };
      for (int64_t index = first; index < stop; ++index) {
        const bool inside = index + group < end;
        if (!call.swiglu) {
          const Panel panel = panel_at(call, index);
          multiply_by(panel, inside ? panel_at(call, index + group).weights() : after, sums);
          write_sums(call, panel, row, rows, sums, nullptr);
          continue;
        }
        const Panel gate{&call.layers[0], index}, up{&call.layers[1], index};
        const Bytes next = inside ? Panel{gate.layer, index + group}.weights() : after;
        multiply_by(gate, group == 1 ? up.weights() : next, sums);
        multiply_by(up, group == 1 ? next : inside ? Panel{up.layer, index + group}.weights() : Bytes{}, up_sums);
        write_sums(call, gate, row, rows, sums, up_sums);
      }
    }
  }
}

std::atomic<int64_t> block_rows{MAX_ROWS};  // up to how many rows calls read quantized panels that have bfloat16 behind them

// What a call of so many rows reads. Quantized panels (panel, block, byte) may have the same weights in bfloat16 behind each, which are
// faster where several tiles of rows would wait until a panel is widened, and give the same bits.
Weights weights_for(const at::Tensor& weight, int64_t rows) {
  const auto* data = static_cast<const char*>(weight.const_data_ptr());
  const int64_t stride = weight.stride(0) * weight.element_size(), bytes = weight.size(1) * weight.stride(1) * weight.element_size();
  if (weight.scalar_type() != at::kByte) return {data, stride, bytes};
  if (stride > bytes && rows > block_rows) return {data + bytes, stride, stride - bytes};
  return {data, stride, bytes, QuantizedFormats::find(weight.size(-1))};
}

// The first panel of a thread's range in the weights of a later call of as many rows; empty if there are none.
Bytes thread_begin(at::TensorList weights, int64_t rows, int64_t thread, int64_t threads) {
  int64_t panels = 0;
  for (const at::Tensor& weight : weights) panels += weight.size(0);
  int64_t index = panels * thread / threads;
  for (const at::Tensor& weight : weights) {
    if (index < weight.size(0)) return weights_for(weight, rows).panel(index);
    index -= weight.size(0);
  }
  return {};
}

// How many panels a thread of the team takes at a time: few, so that none waits long for another; with many rows half a range.
int64_t piece_of(const Call& call, int64_t panels, int64_t threads) {
  const int64_t range = (panels + threads - 1) / threads;
  return call.rows > ROW_BLOCK / 8 ? (range + 1) / 2 : std::clamp<int64_t>(range / 4, 1, call.swiglu ? 2 : 8);
}

void run(const Call& call, at::TensorList prefetch) {
  const int64_t panels = call.panel_count(), threads = std::min<int64_t>(thread_count(), panels);
  const Products own = products;
  share(panels, threads, piece_of(call, panels, threads), [&](int64_t begin, int64_t end, int64_t thread, bool last) {
    // what is read next, by this thread as a rule: the piece behind, or its part of the next call
    const Bytes after = last ? thread_begin(prefetch, call.rows, thread, threads) : panel_at(call, end).weights();
    if (own == Products::PAIRS) return run_pairs(call, begin, end, after);
    if (own == Products::EMULATED) return run_tiles<TileProduct<EmulatedTiles>>(call, begin, end, after);
#ifdef __AMX_BF16__
    if (own == Products::TILES && call.rows > fma_rows) return run_tiles<TileProduct<AmxTiles>>(call, begin, end, after);
#endif
    run_tiles<FmaProduct>(call, begin, end, after);
  });
}

// Rows as the kernel reads them: contiguous, and in the order of tiles with a width that is a multiple of STEP.
at::Tensor prepared(const at::Tensor& rows) {
  const int64_t width = rows.size(-1);
  if (products == Products::PAIRS || width % STEP == 0) return rows.contiguous();
  auto shape = rows.sizes().vec();
  shape.back() = (width + STEP - 1) / STEP * STEP;
  auto padded = at::zeros(shape, rows.options());
  padded.narrow(-1, 0, width).copy_(rows);
  return padded;
}

// A call that writes to `out`, the layers' columns next to each other.
Call make_call(
    const at::Tensor& rows, at::TensorList weights, at::TensorList biases, at::IntArrayRef columns, at::Tensor& out) {
  TORCH_CHECK(
      biases.size() == weights.size() && columns.size() == weights.size(),
      "packed_linear: expected one bias and one number of columns per weight");
  const int64_t width = rows.size(-1);
  bf16* to = mutable_bf16_data(out);
  Call call{{}, bf16_data(rows), rows.numel() / width, width, out.size(-1)};
  for (size_t index = 0; index < weights.size(); ++index) {
    const at::Tensor& weight = weights[index];
    const bool quantized = weight.scalar_type() == at::kByte;
    const Format* format = quantized ? QuantizedFormats::find(weight.size(-1)) : nullptr;
    TORCH_CHECK(
        !quantized || (format && width % format->inputs == 0), "packed_linear: no quantized format has blocks of ", weight.size(-1),
        " bytes, or ", width, " inputs are not a multiple of its blocks");
    const Layer layer{
        weights_for(weight, call.rows), biases[index].const_data_ptr<float>(), to, columns[index]};
    const std::array<int64_t, 4> expected = quantized
        ? std::array<int64_t, 4>{layer.panel_count(), width / format->inputs, format->bytes}
        : std::array<int64_t, 4>{layer.panel_count(), call.padded_width() / 2, PANEL, 2};
    const int64_t dense = width * PANEL * int64_t{sizeof(bf16)}, behind =
        quantized ? weight.stride(0) - weight.stride(1) * weight.size(1) : 0;
    TORCH_CHECK(
        rows.scalar_type() == at::kBFloat16 && (quantized || weight.scalar_type() == at::kBFloat16) && width % 2 == 0 &&
            weight.sizes() == at::IntArrayRef(expected.data(), quantized ? 3 : 4) && (behind == 0 || behind == dense) &&
            (quantized ? weight.stride(1) == weight.size(2) && weight.stride(2) == 1 : weight.is_contiguous()) && biases[index].numel() >= layer.panel_count() * PANEL,
        "packed_linear: the packed weight does not match the rows or its number of columns");
    call.layers.push_back(layer);
    to += layer.columns;
  }
  return call;
}

at::Tensor empty_with_columns(const at::Tensor& rows, int64_t columns) {
  at::DimVector shape(rows.sizes());
  shape.back() = columns;
  return at::empty(shape, rows.options());
}

at::Tensor packed_linear(
    const at::Tensor& rows, at::TensorList weights, at::TensorList biases, at::IntArrayRef columns, at::TensorList prefetch) {
  const auto contiguous = prepared(rows);
  auto out = empty_with_columns(contiguous, std::accumulate(columns.begin(), columns.end(), int64_t{0}));
  run(make_call(contiguous, weights, biases, columns, out), prefetch);
  return out;
}

at::Tensor packed_swiglu(
    const at::Tensor& rows, at::TensorList weights, at::TensorList biases, int64_t columns, at::TensorList prefetch) {
  TORCH_CHECK(weights.size() == 2, "packed_swiglu: expected the weights of a gate and an up projection");
  const auto contiguous = prepared(rows);
  auto out = empty_with_columns(contiguous, columns);
  Call call = make_call(contiguous, weights, biases, {columns, columns}, out);
  call.swiglu = true;
  run(call, prefetch);
  return out;
}

// See operations.py: configure_kernels.
void configure(std::string_view name, int64_t by_fma, bool team, int64_t by_blocks) {
#ifdef __AMX_BF16__
  constexpr bool tiles = true;
#else
  constexpr bool tiles = false;
#endif
  const std::pair<std::string_view, Products> known[] = {
      {"pairs", Products::PAIRS}, {"tiles", Products::TILES}, {"fma", Products::FMA}, {"emulated", Products::EMULATED}};
  const auto* found = std::find_if(std::begin(known), std::end(known), [&](const auto& one) { return one.first == name; });
  TORCH_CHECK(
      found != std::end(known) && (tiles || found->second != Products::TILES), "configure_kernels: ", name, " does not run on this processor");
  products = found->second;
  fma_rows = by_fma;
  block_rows = by_blocks;
#if defined(__x86_64__) && defined(__linux__)
  use_team = team;
#else
  TORCH_CHECK(!team, "configure_kernels: the team needs Linux");
#endif
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(steering, library) {
  library.def("configure_kernels(str linear, int fma_rows, bool team, int block_rows) -> ()", &configure);
}

TORCH_LIBRARY_IMPL(steering, CPU, library) {
  library.impl("packed_linear", &packed_linear);
  library.impl("packed_swiglu", &packed_swiglu);
}

extern "C" AOTITorchError aoti_torch_cpu_packed_linear(
    AtenTensorHandle rows, const AtenTensorHandle* weights, int64_t weight_count, const AtenTensorHandle* biases,
    int64_t bias_count, const int64_t* columns, int64_t column_count, const AtenTensorHandle* prefetch,
    int64_t prefetch_count, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = handle(packed_linear(
        tensor(rows), tensors(weights, weight_count), tensors(biases, bias_count), at::IntArrayRef(columns, column_count),
        tensors(prefetch, prefetch_count)));
  });
}

extern "C" AOTITorchError aoti_torch_cpu_packed_swiglu(
    AtenTensorHandle rows, const AtenTensorHandle* weights, int64_t weight_count, const AtenTensorHandle* biases,
    int64_t bias_count, int64_t columns, const AtenTensorHandle* prefetch, int64_t prefetch_count,
    AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = handle(packed_swiglu(
        tensor(rows), tensors(weights, weight_count), tensors(biases, bias_count), columns,
        tensors(prefetch, prefetch_count)));
  });
}

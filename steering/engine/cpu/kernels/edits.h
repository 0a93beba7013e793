// The edits of one layer, as they change the residual of one token: LayerEdits.apply in steering/injection/apply.py, in float32, on
// any CPU. A row's bits do not depend on how the rows next to it are steered.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace steering {
namespace {

using Vector = at::vec::Vectorized<float>;

constexpr int64_t KIND = 0, READ_ROW = 1, WEIGHT = 2, MANDATORY = 4, CODES = 5;     // columns of codes, slots.py
constexpr int64_t BIAS = 0, RELATIVE = 1, SCALE = 2, NUMBERS = 3;                   // columns of numbers
constexpr int64_t RELU = 1, ROTATE = 2;                                             // kinds of an edit, plan/types.py
constexpr int64_t GRAIN = 1 << 11;  // elements for which another thread is started
constexpr float TINY = 1e-12f, PARALLEL = 1e-6f;

Vector sum(Vector a, Vector b) { return a + b; }

// The sum of a[i] * b[i], in four sums that do not wait for each other.
float dot(const float* a, const float* b, int64_t width) {
  constexpr int64_t SUMS = 4, LANES = Vector::size();
  Vector sums[SUMS] = {Vector(0.0f), Vector(0.0f), Vector(0.0f), Vector(0.0f)};
  int64_t at = 0;
  for (; at + SUMS * LANES <= width; at += SUMS * LANES)
    for (int64_t i = 0; i < SUMS; ++i)
      sums[i] = at::vec::fmadd(Vector::loadu(a + at + i * LANES), Vector::loadu(b + at + i * LANES), sums[i]);
  for (; at < width; at += LANES) {
    const int64_t count = std::min(LANES, width - at);
    sums[0] = at::vec::fmadd(Vector::loadu(a + at, count), Vector::loadu(b + at, count), sums[0]);
  }
  return at::vec::vec_reduce_all<float>(sum, (sums[0] + sums[1]) + (sums[2] + sums[3]));
}

float norm(const float* values, int64_t width) { return std::sqrt(dot(values, values, width)); }

// to = to + scale * values
void add_scaled(float* to, float scale, const float* values, int64_t width) {
  const Vector factor(scale);
  at::vec::map2<float>([factor](Vector x, Vector y) { return at::vec::fmadd(factor, y, x); }, to, to, values, width);
}

// The edits of one layer for all tokens, and where their doses are noted.
struct LayerEdits {
  const float *vectors, *numbers, *weights;
  const int64_t *codes, *rows, *slots;
  float *left, *edits, *changes, *scaled;
  int64_t width, row_count, column_count, row_stride, slot_count, edit_count;

  // tables: of a pass, from `vectors` to `scaled` of `steer` in operations.py, as `check` takes them. note: where doses are noted.
  LayerEdits(at::TensorList tables, int64_t layer, int64_t note) {
    const at::Tensor &rows_of_slots = tables[3], &noted_edits = tables[7];
    const int64_t count = tables[4].size(0), columns = noted_edits.size(2);
    vectors = tables[0].const_data_ptr<float>(), numbers = tables[1].const_data_ptr<float>();
    codes = tables[2].const_data_ptr<int64_t>(), slots = tables[4].const_data_ptr<int64_t>();
    rows = rows_of_slots.const_data_ptr<int64_t>() + layer * rows_of_slots.size(2);
    weights = tables[5].const_data_ptr<float>(), left = tables[6].mutable_data_ptr<float>();
    edits = noted_edits.mutable_data_ptr<float>() + note * count * columns;
    changes = tables[8].mutable_data_ptr<float>() + note * count, scaled = tables[9].mutable_data_ptr<float>() + note * count;
    width = tables[0].size(1), row_count = tables[0].size(0), column_count = tables[5].size(1);
    row_stride = rows_of_slots.size(1) * rows_of_slots.size(2), slot_count = rows_of_slots.size(0);
    edit_count = columns;
  }

  static void check(at::TensorList tables) {
    TORCH_CHECK(tables.size() == 10, "expected ten tables, got ", tables.size());
    for (const at::Tensor& table : tables) TORCH_CHECK(table.is_contiguous(), "tables must be contiguous");
    const int64_t count = tables[4].size(0), columns = tables[7].size(2), most = tables[3].size(2);
    TORCH_CHECK(tables[5].size(0) == count && tables[6].size(0) == count, "expected one slot, left and row of weights per token");
    TORCH_CHECK(tables[7].size(1) == count && tables[8].size(1) == count, "expected a note per token");
    TORCH_CHECK(columns <= most, "expected at most ", most, " edits, got ", columns);
  }

  const int64_t* rows_of(int64_t token) const {
    const int64_t slot = slots[token];
    TORCH_CHECK(slot >= 0 && slot < slot_count, "steer: slot ", slot, " of ", slot_count);
    return rows + slot * row_stride;
  }

  // Prefetches the first edit of a token: its vector was last read a pass ago, and the weights of the model since.
  void prefetch(int64_t token) const {
    const int64_t* indices = rows_of(token);
    const auto* lines = reinterpret_cast<const char*>(vectors + indices[0] * width);
    if (edit_count && indices[0])
      for (int64_t byte = 0; byte < width * int64_t{sizeof(float)}; byte += 64) __builtin_prefetch(lines + byte);
  }

  // Adds what the edits of one stage change to `change`; notes the dose of each. scratch: (width,).
  void stage(int64_t token, bool mandatory, const float* residual, float length, float* change, float* scratch) const {
    const int64_t* indices = rows_of(token);
    for (int64_t number = 0; number < edit_count && indices[number]; ++number) {
      const int64_t row = indices[number];
      TORCH_CHECK(row > 0 && row < row_count, "steer: row ", row, " of ", row_count, " edits");
      const int64_t* code = codes + row * CODES;
      if ((code[MANDATORY] != 0) != mandatory) continue;
      const float weight = weights[token * column_count + code[WEIGHT]] * numbers[row * NUMBERS + SCALE];
      const float* vector = vectors + row * width;
      float coefficient = 0.0f;
      if (weight != 0.0f && code[KIND] == ROTATE) {
        coefficient = rotate(residual, length, vector, weight, change, scratch);
      } else if (weight != 0.0f) {
        float inner = numbers[row * NUMBERS + BIAS] + numbers[row * NUMBERS + RELATIVE] * length;
        if (code[READ_ROW]) inner += dot(residual, vectors + code[READ_ROW] * width, width);
        if (code[KIND] == RELU) inner = std::max(inner, 0.0f);
        coefficient = weight * inner;
        if (coefficient != 0.0f) add_scaled(change, coefficient, vector, width);
      }
      edits[token * edit_count + number] = coefficient / length;
    }
  }

  // Turns the residual toward a direction by an angle: adds the difference to `change` and returns its length.
  float rotate(const float* residual, float length, const float* direction, float angle, float* change, float* across) const {
    const float projection = dot(residual, direction, width);
    std::copy(residual, residual + width, across);
    add_scaled(across, -projection, direction, width);
    const float height = norm(across, width);
    if (height <= PARALLEL * length) return 0.0f;
    const float turned = std::clamp(std::atan2(height, projection) - angle, 0.0f, std::numbers::pi_v<float>);
    const float along = length * std::cos(turned) - projection, rest = length * std::sin(turned) / height - 1.0f;
    add_scaled(change, along, direction, width);
    add_scaled(change, rest, across, width);
    return std::sqrt(along * along + rest * rest * height * height);
  }

  // Changes the residual of one token in place. memory: (3 * width,).
  void apply(int64_t token, float* residual, float* memory) const {
    const int64_t* indices = rows_of(token);
    if (!edit_count || !indices[0]) return;
    float *change = memory, *scratch = memory + width, *more = memory + 2 * width;
    std::fill(change, change + width, 0.0f);
    const float length = std::max(norm(residual, width), TINY);
    stage(token, false, residual, length, change, scratch);
    if (std::isfinite(left[token])) {
      const float dose = norm(change, width) / length, share = std::min((left[token] + TINY) / (dose + TINY), 1.0f);
      left[token] = std::max(left[token] - dose * share, 0.0f);
      scaled[token] = share < 1.0f;
      if (share < 1.0f) {
        const Vector factor(share);
        at::vec::map<float>([factor](Vector x) { return x * factor; }, change, change, width);
        for (int64_t number = 0; number < edit_count && indices[number]; ++number) edits[token * edit_count + number] *= share;
      }
    }
    at::vec::map2<float>(sum, residual, residual, change, width);
    int64_t last = 0;
    while (last + 1 < edit_count && indices[last + 1]) ++last;
    if (codes[indices[last] * CODES + MANDATORY]) {  // mandatory edits come last
      std::fill(more, more + width, 0.0f);
      stage(token, true, residual, std::max(norm(residual, width), TINY), more, scratch);
      at::vec::map2<float>(sum, residual, residual, more, width);
      at::vec::map2<float>(sum, change, change, more, width);
    }
    changes[token] = norm(change, width) / length;
  }
};

}  // namespace
}  // namespace steering

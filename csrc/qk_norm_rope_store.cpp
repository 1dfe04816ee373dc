#include "streamt1/qk_norm_rope_store.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "streamt1/dispatch.h"

namespace streamt1 {

constexpr float kEps = 1e-6f;
constexpr int64_t kParallelElements = 1 << 15;  // less is done before a second thread wakes up

// Factors of one place on one axis, laid out as the pairs are: (cos, cos) and (-sin, sin).
STREAMT1_CLONES void norm_rope_turn_axis(float* __restrict cosines, float* __restrict sines,
                                         const int64_t* __restrict rates, int64_t pairs,
                                         int64_t position) {
  for (int64_t j = 0; j < pairs; ++j) {
    const uint64_t turn = static_cast<uint64_t>(rates[j]) * static_cast<uint64_t>(position);
    const auto word = static_cast<uint32_t>(turn >> 32);
    // Whole quarter turns by integers, series for what is left of the angle, in [-pi/4, pi/4].
    const uint32_t quadrant = (word + (1u << 29)) >> 30;
    const auto rest = static_cast<double>(static_cast<int32_t>(word - (quadrant << 30)));
    const double t = rest * 0x1p-32 * 0x1.921fb54442d18p+2;
    const double z = t * t;
    double s = 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = s * z + 1.0;
    s = s * t;
    double c = -1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 1.0 / 2.0;
    c = c * z + 1.0;
    const bool odd = quadrant & 1u;
    const double x = odd ? s : c;
    const double y = odd ? c : s;
    const auto cosine = static_cast<float>(((quadrant + 1u) & 2u) ? -x : x);
    const auto sine = static_cast<float>((quadrant & 2u) ? -y : y);
    cosines[2 * j] = cosine;
    cosines[2 * j + 1] = cosine;
    sines[2 * j] = -sine;
    sines[2 * j + 1] = sine;
  }
}

namespace {

// cos and sin of every frame, row and column of the call: a few hundred places, not a table of all.
class Turns {
 public:
  Turns(const TokenGrid& grid, const NormRopeShape& shape)
      : grid_(grid), patches_(grid.rows * grid.columns), frames_(shape.tokens / patches_) {
    const int64_t pairs = shape.head_dim / 2;
    const int64_t side = pairs / 3, time = pairs - 2 * side;
    const int64_t clips = grid.frames_batch_stride ? shape.batch : 1;
    time_ = {2 * time, clips * frames_, 0};
    row_ = {2 * side, grid.rows, time_.width * time_.places};
    column_ = {2 * side, grid.columns, row_.start + row_.width * row_.places};
    const int64_t all = column_.start + column_.width * column_.places;
    cosines_.resize(all);
    sines_.resize(all);
    for (int64_t clip = 0; clip < clips; ++clip)
      for (int64_t f = 0; f < frames_; ++f)
        fill(time_, clip * frames_ + f, grid.rates,
             grid.frames[clip * grid.frames_batch_stride + f]);
    for (int64_t place = 0; place < grid.rows; ++place) fill(row_, place, grid.rates + time, place);
    for (int64_t place = 0; place < grid.columns; ++place)
      fill(column_, place, grid.rates + time + side, place);
  }

  // The factors of token `s` of row `b`, [head_dim] each.
  void of_token(float* cosines, float* sines, int64_t b, int64_t s) const {
    const int64_t frame = s / patches_ + (grid_.frames_batch_stride ? b * frames_ : 0);
    const int64_t patch = s % patches_;
    int64_t at = 0;
    for (const auto& [axis, place] :
         {At{time_, frame}, At{row_, patch / grid_.columns}, At{column_, patch % grid_.columns}}) {
      const int64_t from = axis.start + place * axis.width;
      std::copy_n(cosines_.data() + from, axis.width, cosines + at);
      std::copy_n(sines_.data() + from, axis.width, sines + at);
      at += axis.width;
    }
  }

 private:
  struct Axis {
    int64_t width;  // values per place: two for each pair
    int64_t places;
    int64_t start;
  };
  struct At {
    const Axis& axis;
    int64_t place;
  };

  void fill(const Axis& axis, int64_t place, const int64_t* rates, int64_t position) {
    const int64_t at = axis.start + place * axis.width;
    norm_rope_turn_axis(cosines_.data() + at, sines_.data() + at, rates, axis.width / 2, position);
  }

  const TokenGrid& grid_;
  int64_t patches_;
  int64_t frames_;
  Axis time_{}, row_{}, column_{};
  std::vector<float> cosines_, sines_;
};

// What one row needs: the scratch of a thread, the weights as float32.
struct RowWork {
  float* values;         // [E]
  const float* weight;   // [E]
  const float* cosines;  // [D], or none: no rotation
  const float* sines;
  int64_t heads;
  int64_t head_dim;
};

template <typename T>
STREAMT1_INLINE void norm_row(T* __restrict to, const T* from, const RowWork& work) {
  const int64_t width = work.heads * work.head_dim;
  float* __restrict x = work.values;
  const float* __restrict weight = work.weight;
  read_row(x, from, width);
  const float square = sum_row(width, [x](int64_t i) { return x[i] * x[i]; });
  const float factor = 1.0f / std::sqrt(square / static_cast<float>(width) + kEps);
  if (work.cosines == nullptr) {
    for (int64_t i = 0; i < width; ++i) to[i] = from_float<T>(x[i] * factor * weight[i]);
    return;
  }
  for (int64_t i = 0; i < width; ++i) x[i] = x[i] * factor * weight[i];
  const float* __restrict cosines = work.cosines;
  const float* __restrict sines = work.sines;
  for (int64_t head = 0; head < work.heads; ++head) {
    const float* __restrict in = x + head * work.head_dim;
    T* __restrict out = to + head * work.head_dim;
    for (int64_t j = 0; j < work.head_dim; j += 2) {
      const float even = in[j], odd = in[j + 1];
      out[j] = from_float<T>(even * cosines[j] + odd * sines[j]);
      out[j + 1] = from_float<T>(odd * cosines[j + 1] + even * sines[j + 1]);
    }
  }
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void norm_rope_row(void* to, const void* from, const RowWork& work, Float type) {
  if (type == Float::kFloat32)
    norm_row(static_cast<float*>(to), static_cast<const float*>(from), work);
  else if (type == Float::kBFloat16)
    norm_row(static_cast<BFloat16*>(to), static_cast<const BFloat16*>(from), work);
  else
    norm_row(static_cast<Float16*>(to), static_cast<const Float16*>(from), work);
}

STREAMT1_CLONES void norm_rope_widen(float* to, const void* from, int64_t count, Float type) {
  if (type == Float::kFloat32)
    read_row(to, static_cast<const float*>(from), count);
  else if (type == Float::kBFloat16)
    read_row(to, static_cast<const BFloat16*>(from), count);
  else
    read_row(to, static_cast<const Float16*>(from), count);
}

namespace {

struct Ends {
  const char* from;
  char* to;
};

Ends ends_of(const NormedStream& stream, int64_t b, int64_t s, int64_t bytes) {
  const int64_t row = stream.blocks ? stream.blocks[b] : b;
  const Rows<const void*>& from = stream.from;
  const Rows<void*>& to = stream.to;
  return {
      static_cast<const char*>(from.data) + (b * from.batch_stride + s * from.token_stride) * bytes,
      static_cast<char*>(to.data) + (row * to.batch_stride + s * to.token_stride) * bytes};
}

}  // namespace

void qk_norm_rope_store(const NormedStream& q, const NormedStream& k, const NormedStream& v,
                        const TokenGrid& grid, const NormRopeShape& shape, Float type,
                        [[maybe_unused]] int threads) {
  const int64_t width = shape.heads * shape.head_dim;
  const int64_t bytes = type == Float::kFloat32 ? 4 : 2;
  const bool rotated = grid.rates != nullptr;
  std::optional<Turns> turns;
  if (rotated) turns.emplace(grid, shape);
  std::vector<float> weights(2 * width);
  const NormedStream* normed[] = {&q, &k};
  for (int i = 0; i < 2; ++i)
    if (normed[i]->from.data)
      norm_rope_widen(weights.data() + i * width, normed[i]->weight, width, type);
  const int64_t rows = shape.batch * shape.tokens;
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * width > kParallelElements)
  {
    std::vector<float> scratch(width + 2 * shape.head_dim);
    float* cosines = scratch.data() + width;
    float* sines = cosines + shape.head_dim;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t b = row / shape.tokens, s = row % shape.tokens;
      if (rotated) turns->of_token(cosines, sines, b, s);
      for (int i = 0; i < 2; ++i) {
        if (normed[i]->from.data == nullptr) continue;
        const auto [from, to] = ends_of(*normed[i], b, s, bytes);
        norm_rope_row(to, from,
                      {scratch.data(), weights.data() + i * width, rotated ? cosines : nullptr,
                       sines, shape.heads, shape.head_dim},
                      type);
      }
      if (v.from.data) {
        const auto [from, to] = ends_of(v, b, s, bytes);
        std::memmove(to, from, width * bytes);
      }
    }
  }
}

}  // namespace streamt1

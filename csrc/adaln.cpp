#include "streamt1/adaln.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "streamt1/dispatch.h"

namespace streamt1 {
namespace {

constexpr float kEps = 1e-6f;
constexpr int64_t kGroup = 4;                   // rows normed together
constexpr int64_t kParallelElements = 1 << 15;  // less is done before a second thread wakes up

// A span of tokens within one frame, and float32 scratch.
struct Span {
  int64_t batch, frame, first, count;
  float* values;  // [kGroup, width]; the others [width]
  float* gate;
  float* scale;
  float* shift;
};

template <typename T>
STREAMT1_INLINE const T* vector_of(const FrameVectors& vectors, const Span& span) {
  return static_cast<const T*>(vectors.data) + span.batch * vectors.batch_stride +
         span.frame * vectors.frame_stride;
}

template <typename T, typename Address>
STREAMT1_INLINE T* row_of(const Rows<Address>& rows, int64_t b, int64_t s) {
  return static_cast<T*>(rows.data) + b * rows.batch_stride + s * rows.token_stride;
}

// total = x + gate * y; returns its sum. `values` gets the total as float32 where that is not what
// it is.
template <typename T>
STREAMT1_INLINE float add_row(float* __restrict values, T* __restrict total, const T* __restrict x,
                              const T* __restrict y, const float* __restrict gate, int64_t width) {
  return sum_row(width, [=](int64_t i) {
    const float sum = to_float(x[i]) + to_float(y[i]) * gate[i];
    total[i] = from_float<T>(sum);
    if constexpr (std::is_same_v<T, float>) return sum;
    return values[i] = round_to<T>(sum);
  });
}

// The same where the total takes the place of x.
template <typename T>
STREAMT1_INLINE float add_to_row(float* __restrict values, T* __restrict total,
                                 const T* __restrict y, const float* __restrict gate,
                                 int64_t width) {
  return sum_row(width, [=](int64_t i) {
    const float sum = to_float(total[i]) + to_float(y[i]) * gate[i];
    total[i] = from_float<T>(sum);
    if constexpr (std::is_same_v<T, float>) return sum;
    return values[i] = round_to<T>(sum);
  });
}

template <typename T>
STREAMT1_INLINE float read_and_sum(float* __restrict values, const T* __restrict x, int64_t width) {
  return sum_row(width, [=](int64_t i) {
    if constexpr (std::is_same_v<T, float>) return x[i];
    return values[i] = to_float(x[i]);
  });
}

// A row as float32: itself, or what was written to scratch.
template <typename T>
STREAMT1_INLINE const float* floats_of(const T* row, const float* scratch) {
  if constexpr (std::is_same_v<T, float>) return row;
  return scratch;
}

// 1 / sqrt(variance + eps), from the distances to the mean.
STREAMT1_INLINE float norm_factor(const float* values, float mean, int64_t width) {
  const float square = sum_row(width, [=](int64_t i) {
    const float distance = values[i] - mean;
    return distance * distance;
  });
  return 1.0f / std::sqrt(square / static_cast<float>(width) + kEps);
}

template <typename T>
STREAMT1_INLINE void write_norm(T* __restrict out, const float* __restrict values, float mean,
                                float factor, const Span& span, int64_t width) {
  const float* __restrict scale = span.scale;
  const float* __restrict shift = span.shift;
  for (int64_t i = 0; i < width; ++i)
    out[i] = from_float<T>((values[i] - mean) * factor * scale[i] + shift[i]);
}

template <typename T>
STREAMT1_INLINE void span_rows(const Adaln& job, const AdalnShape& shape, const Span& span) {
  const int64_t width = shape.width, tokens = shape.frames * shape.patches;
  if (job.gate.data)
    read_row(span.gate, vector_of<T>(job.gate, span), width);
  else
    std::fill_n(span.gate, width, 1.0f);
  if (job.out) {
    read_row(span.scale, vector_of<T>(job.scale, span), width);
    read_row(span.shift, vector_of<T>(job.shift, span), width);
    for (int64_t i = 0; i < width && job.one_plus; ++i) span.scale[i] += 1.0f;
  }
  for (int64_t first = 0; first < span.count; first += kGroup) {
    const int64_t rows = std::min(kGroup, span.count - first);
    const int64_t token = span.frame * shape.patches + span.first + first;
    const int64_t at = (span.batch * tokens + token) * width;
    const float* values[kGroup];
    float means[kGroup], factors[kGroup];
    for (int64_t r = 0; r < rows; ++r) {
      float* scratch = span.values + r * width;
      const T* x = row_of<const T>(job.x, span.batch, token + r);
      float sum;
      if (job.total) {
        T* total = static_cast<T*>(job.total) + at + r * width;
        const T* y = row_of<const T>(job.y, span.batch, token + r);
        sum = total == x ? add_to_row(scratch, total, y, span.gate, width)
                         : add_row(scratch, total, x, y, span.gate, width);
        values[r] = floats_of(total, scratch);
      } else {
        sum = read_and_sum(scratch, x, width);
        values[r] = floats_of(x, scratch);
      }
      means[r] = sum / static_cast<float>(width);
    }
    if (!job.out) continue;
    // Step by step for all of the group: one row's chain of mean, variance and root mostly waits.
    for (int64_t r = 0; r < rows; ++r) factors[r] = norm_factor(values[r], means[r], width);
    for (int64_t r = 0; r < rows; ++r)
      write_norm(static_cast<T*>(job.out) + at + r * width, values[r], means[r], factors[r], span,
                 width);
  }
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void adaln_span(const Adaln& job, const AdalnShape& shape, const Span& span,
                                Float type) {
  if (type == Float::kFloat32)
    span_rows<float>(job, shape, span);
  else if (type == Float::kBFloat16)
    span_rows<BFloat16>(job, shape, span);
  else
    span_rows<Float16>(job, shape, span);
}

void adaln(const Adaln& job, const AdalnShape& shape, Float type, [[maybe_unused]] int threads) {
  constexpr int64_t kSpanTokens = 64;
  const int64_t spans = (shape.patches + kSpanTokens - 1) / kSpanTokens;
  const int64_t frames = shape.batch * shape.frames;
  const bool parallel = threads > 1 && frames * shape.patches * shape.width > kParallelElements;
#pragma omp parallel num_threads(threads) if (parallel)
  {
    std::vector<float> scratch((kGroup + 3) * shape.width);
    float* values = scratch.data();
    float* vectors = values + kGroup * shape.width;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < frames * spans; ++n) {
      const int64_t frame = n / spans, first = n % spans * kSpanTokens;
      adaln_span(job, shape,
                 {frame / shape.frames, frame % shape.frames, first,
                  std::min(kSpanTokens, shape.patches - first), values, vectors,
                  vectors + shape.width, vectors + 2 * shape.width},
                 type);
    }
  }
}

}  // namespace streamt1

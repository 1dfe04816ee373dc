// One token's values as float32: read, sum, write. Sums have 32 fixed accumulators, so their bits
// do not depend on the instruction set.
#pragma once

#include <cstdint>

#include "streamt1/convert.h"
#include "streamt1/dispatch.h"

namespace streamt1 {

// A tensor [B, S, E] whose last axis is dense; strides count elements.
template <typename Address>
struct Rows {
  Address data = nullptr;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
};

template <typename T>
STREAMT1_INLINE void read_row(float* __restrict to, const T* __restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

template <typename T>
STREAMT1_INLINE void write_row(T* __restrict to, const float* __restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<T>(from[i]);
}

// Sum over i of value(i), which may write what it computes.
template <typename Value>
STREAMT1_INLINE float sum_row(int64_t count, Value value) {
  constexpr int kLanes = 32;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += value(i + lane);
  }
  for (int lane = 0; i + lane < count; ++lane) lanes[lane] += value(i + lane);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

}  // namespace streamt1

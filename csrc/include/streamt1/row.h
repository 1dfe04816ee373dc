// One token's values as float32: read, sum. Sums have 32 fixed accumulators, so their bits do not
// depend on the instruction set.
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
  // Written out: as a loop over halves it takes longer than the sum of a short row.
  for (int lane = 0; lane < 16; ++lane) lanes[lane] += lanes[lane + 16];
  for (int lane = 0; lane < 8; ++lane) lanes[lane] += lanes[lane + 8];
  for (int lane = 0; lane < 4; ++lane) lanes[lane] += lanes[lane + 4];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

}  // namespace streamt1

// Gated residual and modulated layer norm, one pass. The contract is written in kernels/adaln.py.
#pragma once

#include <cstdint>

#include "streamt1/convert.h"
#include "streamt1/row.h"

namespace streamt1 {

// One vector [E] for every frame of every row; strides count elements and may be 0.
struct FrameVectors {
  const void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t frame_stride = 0;
};

// total = x + gate * y, where there is y; out = LN(total) * scale + shift, where there is out.
struct Adaln {
  Rows<const void*> x;
  Rows<const void*> y;
  FrameVectors gate;  // none: y is added as it is
  FrameVectors scale;
  FrameVectors shift;
  bool one_plus = true;   // scale is counted from 1
  void* total = nullptr;  // [B, S, E]
  void* out = nullptr;    // [B, S, E]
};

struct AdalnShape {
  int64_t batch;
  int64_t frames;
  int64_t patches;  // tokens of a frame
  int64_t width;
};

void adaln(const Adaln& job, const AdalnShape& shape, Float type, int threads);

}  // namespace streamt1

// Fresh noise drawn where it is used: by itself, blended with a parent's, or added to clean
// latents. The contracts are written in kernels/philox.py and kernels/slerp_noise.py.
#pragma once

#include <cstdint>

#include "streamt1/convert.h"

namespace streamt1 {

// Rows of noise. Pointers to values are float32, bfloat16 or float16, rows dense.
struct Noise {
  void* out;               // [rows, elements]
  const void* previous;    // [parents' rows, elements]
  const int32_t* parents;  // [rows]; null: row b reads row b
  const int64_t* streams;  // [rows, 3]
  int64_t rows;
  int64_t elements;
  Float type;
};

// out = the draw. `previous` and `parents` are not read.
void normal_noise(const Noise& noise, int threads);

// out = beta * previous + sqrt(1 - beta^2) * draw
void blend_noise(const Noise& noise, double beta, int threads);

// out = previous turned towards the draw.
void slerp_noise(const Noise& noise, double beta, int threads);

// out = (1 - sigma) * previous + sigma * draw, sigma [rows].
void renoise(const Noise& noise, const float* sigma, int threads);

}  // namespace streamt1

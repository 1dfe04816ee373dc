// Arithmetic that means the same on the CPU and on the GPU: one rounding per operation, bits as
// they lie. For code that is compiled by both compilers.
#pragma once

#include <cstdint>
#include <cstring>

#include "streamt1/dispatch.h"

#if defined(__CUDACC__)
#define STREAMT1_BOTH __host__ __device__ __forceinline__
#else
#define STREAMT1_BOTH STREAMT1_INLINE
#endif

namespace streamt1 {
namespace exact {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// nvcc would fuse a product and the sum after it; the CPU files are compiled so that nothing is.
#if defined(__CUDA_ARCH__)
STREAMT1_BOTH float product(float a, float b) { return __fmul_rn(a, b); }
STREAMT1_BOTH float sum(float a, float b) { return __fadd_rn(a, b); }
STREAMT1_BOTH float difference(float a, float b) { return __fsub_rn(a, b); }
STREAMT1_BOTH uint32_t bits_of(float value) { return __float_as_uint(value); }
STREAMT1_BOTH float float_of(uint32_t bits) { return __uint_as_float(bits); }
#else
STREAMT1_BOTH float product(float a, float b) { return a * b; }
STREAMT1_BOTH float sum(float a, float b) { return a + b; }
STREAMT1_BOTH float difference(float a, float b) { return a - b; }

STREAMT1_BOTH uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

STREAMT1_BOTH float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
#endif

}  // namespace exact
}  // namespace streamt1

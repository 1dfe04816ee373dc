// RMS norm, weight and rotation of queries and keys, written with the values to where attention
// reads them. The contract is written in kernels/qk_norm_rope_store.py.
#pragma once

#include <cstdint>

#include "streamt1/convert.h"
#include "streamt1/row.h"

namespace streamt1 {

// One of q, k, v: read from `from`, written to `to`. Row b goes to row blocks[b] where there are
// blocks. No address to read from: it is left out. No weight: copied.
struct NormedStream {
  Rows<const void*> from;
  Rows<void*> to;
  const void* weight = nullptr;  // [E]
  const int32_t* blocks = nullptr;
};

// Where tokens stand: frame, row, column. No rates: nothing is rotated.
struct TokenGrid {
  const int64_t* rates = nullptr;   // [D / 2], 2^-64 turns per unit of position
  const int64_t* frames = nullptr;  // [B or 1, F]
  int64_t frames_batch_stride = 0;
  int64_t rows = 1;
  int64_t columns = 1;
};

struct NormRopeShape {
  int64_t batch;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
};

void qk_norm_rope_store(const NormedStream& q, const NormedStream& k, const NormedStream& v,
                        const TokenGrid& grid, const NormRopeShape& shape, Float type, int threads);

}  // namespace streamt1
